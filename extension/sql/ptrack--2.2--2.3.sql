-- 2.3: no change in SQL.

\echo Use "ALTER EXTENSION ptrack UPDATE" to load this file. \quit
