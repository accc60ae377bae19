-- 3.0: the statistics no longer depend on the search path.  An installed 2.4
-- has them in PL/pgSQL.

\echo Use "ALTER EXTENSION ptrack UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION ptrack_get_change_stat(start_lsn pg_lsn)
RETURNS TABLE (files bigint, pages numeric, "size, MB" numeric)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_change_stat';
