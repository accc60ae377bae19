-- The functions of ptrack 2.1.

\echo Use "CREATE EXTENSION ptrack" to load this file. \quit

CREATE FUNCTION ptrack_version()
RETURNS text
LANGUAGE C IMMUTABLE
AS 'MODULE_PATHNAME', 'ptrack_version';

CREATE FUNCTION ptrack_init_lsn()
RETURNS pg_lsn
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_init_lsn';

CREATE FUNCTION ptrack_get_pagemapset(start_lsn pg_lsn)
RETURNS TABLE (path text, pagemap bytea)
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_pagemapset';
