-- 3.0: the statistics no longer depend on the search path (an installed 2.4
-- has them in PL/pgSQL), statistics of each relation, and what operators see.

\echo Use "ALTER EXTENSION ptrack UPDATE" to load this file. \quit

CREATE OR REPLACE FUNCTION ptrack_get_change_stat(start_lsn pg_lsn)
RETURNS TABLE (files bigint, pages numeric, "size, MB" numeric)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_change_stat';

CREATE FUNCTION ptrack_get_change_relation_stat(start_lsn pg_lsn)
RETURNS TABLE (
	database name,			-- null for shared relations
	relation regclass,		-- null in other databases than the current one
	relfilenode oid,
	fork text,
	files bigint,
	pages bigint,
	"size, MB" numeric
)
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_get_change_relation_stat';

CREATE FUNCTION ptrack_status()
RETURNS TABLE (
	enabled boolean,			-- if false, all the rest is null
	map_size bigint,			-- bytes
	shared_memory bigint,		-- bytes: the map and what belongs to it
	fill double precision,		-- share of the map's lines that have a mark; null until it is loaded
	init_lsn pg_lsn,			-- as ptrack_init_lsn(); null if not decided yet
	whole_lsn pg_lsn,			-- for older parents, forks that WAL does not describe are reported whole ...
	replayed boolean,			-- ... for all parents, until the next checkpoint
	loaded boolean,				-- the map's file has been read to its end
	reset_time timestamptz,		-- when the map began
	reset_reason text,			-- and why
	flush_lsn pg_lsn,			-- redo point that the file is good for; null if there is no file
	flush_time timestamptz,		-- the last flush since the server's start
	flush_pages bigint,			-- pages of 4 kB that it wrote
	flush_ms double precision,	-- and how long that took
	flush_failures bigint,		-- flushes that have failed since the last good one
	write_throughs bigint		-- durable marks since the server's start
)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_status';

CREATE FUNCTION ptrack_map_fill(start_lsn pg_lsn)
RETURNS double precision
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'ptrack_map_fill';

-- How many blocks are reported without cause, for each block that changed:
-- bytes of the cluster, the share of it that changes between backups, bytes of
-- the map.
CREATE FUNCTION ptrack_estimate_extra(cluster_size bigint, changed double precision, map_size bigint)
RETURNS double precision
LANGUAGE SQL STABLE STRICT
AS $$
	SELECT CASE WHEN changed > 0 AND changed < 1 THEN
		pg_catalog.power(1 - pg_catalog.exp(-16 * changed * cluster_size
			/ pg_catalog.current_setting('block_size')::pg_catalog.float8 / map_size), 2)
		* (1 - changed) / changed
	ELSE 0 END
$$;

-- The map, in bytes and whole MB, with which no more than that are expected.
CREATE FUNCTION ptrack_suggest_map_size(
	cluster_size bigint, changed double precision DEFAULT 0.1, extra double precision DEFAULT 0.25)
RETURNS bigint
LANGUAGE SQL STABLE STRICT
AS $$
	SELECT GREATEST(1, pg_catalog.ceil(CASE
		WHEN changed <= 0 OR changed >= 1 OR extra * changed >= 1 - changed THEN 0
		ELSE -16 * changed * cluster_size
			/ pg_catalog.current_setting('block_size')::pg_catalog.float8
			/ pg_catalog.ln(1 - pg_catalog.sqrt(extra * changed / (1 - changed)))
		END / 1048576))::pg_catalog.int8 * 1048576
$$;
