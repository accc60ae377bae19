/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The one place that knows PostgreSQL's majors apart.
 *
 * Old interfaces are given the shape of the new ones, so that no other file
 * tests PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_COMPAT_H
#define PTRACK_COMPAT_H

#if PG_VERSION_NUM < 120000
#error "ptrack needs PostgreSQL 12 or newer"
#endif

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "replication/walsender.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/guc.h"
#include "utils/tuplestore.h"

/* hashfn.h was utils/hashutils.h (05d8449e73) */
#if PG_VERSION_NUM >= 130000
#include "common/hashfn.h"
#else
#include "utils/hashutils.h"
#endif

/* recovery moved out of xlog.c (70e81861fa) */
#if PG_VERSION_NUM >= 150000
#include "access/xlogrecovery.h"
#endif

/* RelFileNode became RelFileLocator (b0a55e4329) */
#if PG_VERSION_NUM >= 160000
#include "utils/relfilenumbermap.h"

#define RelnLocator(reln)		((reln)->smgr_rlocator.locator)
#define RelnIsTemp(reln)		RelFileLocatorBackendIsTemp((reln)->smgr_rlocator)
#else
#include "utils/relfilenodemap.h"

typedef RelFileNode RelFileLocator;

#define RelidByRelfilenumber(spc, rel)	RelidByRelfilenode(spc, rel)

#define spcOid	spcNode
#define dbOid	dbNode
#define relNumber	relNode
#define RelnLocator(reln)		((reln)->smgr_rnode.node)
#define RelnIsTemp(reln)		RelFileNodeBackendIsTemp((reln)->smgr_rnode)
#endif

/* get_database_name moved (325fc0ab14) */
#if PG_VERSION_NUM >= 190000
#include "utils/lsyscache.h"
#else
#include "commands/dbcommands.h"
#endif

/* ProcNumber replaced pgprocno (024c521117) */
#if PG_VERSION_NUM < 170000
#define MyProcNumber	(MyProc->pgprocno)
#endif

/* StaticAssertDecl (f1f10a1ba9) */
#ifndef StaticAssertDecl
#define StaticAssertDecl(condition, message)	_Static_assert(condition, message)
#endif

/* LSN_FORMAT_ARGS (6f6f284c7e) */
#ifndef LSN_FORMAT_ARGS
#define LSN_FORMAT_ARGS(lsn)	(uint32) ((lsn) >> 32), (uint32) (lsn)
#endif

/* MarkGUCPrefixReserved replaced EmitWarningsOnPlaceholders (88103567cb) */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix)	EmitWarningsOnPlaceholders(prefix)
#endif

/* the insertion timeline lost its global variable (4a92a1c3d1) */
#if PG_VERSION_NUM < 150000
#define GetWALInsertionTimeLine()	ThisTimeLineID
#endif

/* a module can say what it is called (9324c8c580) */
#if PG_VERSION_NUM >= 180000
#define PTRACK_MODULE_MAGIC(title, number) \
	PG_MODULE_MAGIC_EXT(.name = title, .version = number)
#else
#define PTRACK_MODULE_MAGIC(title, number)	PG_MODULE_MAGIC
#endif

/* shared memory is requested by a hook (4f2400cb3f) */
#if PG_VERSION_NUM < 150000
typedef void (*shmem_request_hook_type) (void);
#endif

/*
 * Have a function called that requests shared memory.  Returns the one that
 * was to be called until now, which it has to call.  Before there was a hook,
 * it is called at once, where MaxBackends is not known yet.
 */
static inline shmem_request_hook_type
ptrack_on_shmem_request(shmem_request_hook_type request)
{
	shmem_request_hook_type prev = NULL;

#if PG_VERSION_NUM >= 150000
	prev = shmem_request_hook;
	shmem_request_hook = request;
#else
	request();
#endif
	return prev;
}

/*
 * How many processes can hold a ProcNumber at once: every backend and every
 * auxiliary process.  Prepared transactions have numbers but no process.
 */
static inline int
ptrack_max_procs(void)
{
#if PG_VERSION_NUM >= 150000
	return MaxBackends + NUM_AUXILIARY_PROCS;
#else
	return MaxConnections + autovacuum_max_workers + 1 +
		max_worker_processes + max_wal_senders + NUM_AUXILIARY_PROCS;
#endif
}

/*
 * Prepare a set-returning function to return all its rows in a tuplestore.
 * InitMaterializedSRF came with 5b81703787 and a19e5cee63.
 */
static inline ReturnSetInfo *
ptrack_begin_rows(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
#if PG_VERSION_NUM >= 150000
	InitMaterializedSRF(fcinfo, 0);
#else
	MemoryContext oldcontext;
	TupleDesc	tupdesc;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	oldcontext = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult =
		tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
							  false, work_mem);
	rsinfo->setDesc = tupdesc;
	MemoryContextSwitchTo(oldcontext);
#endif
	return rsinfo;
}

#endif							/* PTRACK_COMPAT_H */
