/*-------------------------------------------------------------------------
 *
 * ptrack.c
 *	  Entry points of the module: load, settings, shared memory, loader.
 *
 * What is tracked, and how, is in the other files:
 *
 *	  hooks.c		where marks come from
 *	  map.c			the map in shared memory
 *	  mapload.c		the map's file: taking it over, reading it
 *	  mapflush.c	the map's file: writing it
 *	  mapformat.c	the map's file: its pages
 *	  query.c		what changed since an LSN
 *	  status.c		what operators see of the map
 *	  relfile.c		files of relations and their directories
 *
 * No locks here but AddinShmemInitLock, around the creation of the map.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "hooks.h"
#include "map.h"
#include "mapfile.h"
#include "postmaster/bgworker.h"
#include "ptrack.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"

#define PTRACK_LOCK_TRANCHE		"ptrack"

/* as many as a 2.4 map could have; 32-bit address spaces are small */
#if SIZEOF_SIZE_T == 8
#define PTRACK_MAX_MAP_SIZE		32768
#else
#define PTRACK_MAX_MAP_SIZE		256
#endif

PTRACK_MODULE_MAGIC("ptrack", PTRACK_VERSION);

PG_FUNCTION_INFO_V1(ptrack_version);

extern void _PG_init(void);
extern PGDLLEXPORT void ptrack_loader_main(Datum main_arg);

static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
static shmem_request_hook_type prev_shmem_request_hook = NULL;

bool
ptrack_enabled(void)
{
	return ptrack_shared != NULL;
}

static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	if (ptrack_map_size > 0)
	{
		RequestAddinShmemSpace(ptrack_map_shmem_size());
		RequestNamedLWLockTranche(PTRACK_LOCK_TRANCHE, 1);
	}
}

static void
startup_shmem(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	if (ptrack_map_size == 0)
	{
		/* what happens from now on is in no map */
		if (!IsUnderPostmaster)
			ptrack_file_delete();
		return;
	}

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	if (ptrack_map_attach())
	{
		ptrack_shared->lock = &GetNamedLWLockTranche(PTRACK_LOCK_TRANCHE)->lock;
		ptrack_file_start();
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * The loader: merge the map's file, then exit.  Nobody waits for it but those
 * who read the map, and they help.
 *
 * It begins when the server is consistent, not earlier: while the postmaster
 * waits for the startup process, the death of a worker is no reason for it to
 * begin anew, and a lock that it held would be held for ever.
 */
void
ptrack_loader_main(Datum main_arg pg_attribute_unused())
{
	/* not to die in the signal's handler, with the lock held */
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	ptrack_file_read_all();
	proc_exit(0);
}

static void
register_loader(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "ptrack", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "ptrack_loader_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "ptrack loader", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "ptrack loader", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ptrack module must be initialized by Postmaster. "
						"Put the following line to configuration file: "
						"shared_preload_libraries='ptrack'")));

	ptrack_check_core();

	DefineCustomIntVariable("ptrack.map_size",
							"Sets the size of the map of changed blocks.",
							"0 turns change tracking off.",
							&ptrack_map_size,
							0, 0, PTRACK_MAX_MAP_SIZE,
							PGC_POSTMASTER,
							GUC_UNIT_MB,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("ptrack");

	if (ptrack_map_size > 0 && wal_level == WAL_LEVEL_MINIMAL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ptrack.map_size needs wal_level \"replica\" or \"logical\""),
				 errhint("Raise wal_level, or set ptrack.map_size to 0.")));

	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
	prev_shmem_request_hook = ptrack_on_shmem_request(request_shmem);

	if (ptrack_map_size > 0)
	{
		ptrack_install_hooks();
		register_loader();
	}
}

/*
 * ptrack_version() returns text
 */
Datum
ptrack_version(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TEXT_P(cstring_to_text(PTRACK_VERSION));
}
