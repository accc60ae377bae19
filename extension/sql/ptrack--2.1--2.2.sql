-- 2.2: the number of pages in each row, and statistics.

\echo Use "ALTER EXTENSION ptrack UPDATE" to load this file. \quit

DROP FUNCTION ptrack_get_pagemapset(pg_lsn);

CREATE FUNCTION ptrack_get_pagemapset(start_lsn pg_lsn)
RETURNS TABLE (path text, pagecount bigint, pagemap bytea)
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_pagemapset';

CREATE FUNCTION ptrack_get_change_stat(start_lsn pg_lsn)
RETURNS TABLE (files bigint, pages numeric, "size, MB" numeric)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_change_stat';
