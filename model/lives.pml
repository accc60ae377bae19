/*
 * lives.pml
 *	  Which lives of a cluster the map's header knows of.
 *
 * A cluster is started with the library, without it, or as a stand-alone
 * backend without it; starts fail, and lives end by a clean stop, in recovery
 * or not, or by a crash.  Each start but a stand-alone backend's writes
 * postmaster.opts.  A truncation is logged and then done, or replayed; it is
 * marked durably where the library is loaded and the block is still there.
 * Afterwards the file grows by zeros, which no WAL describes.  No other WAL
 * counts, and a redo point moves at a clean stop and at the end of recovery
 * alone: load.pml has the rest.
 *
 * Time is the number of the start.  Starts are further apart than OPTS_SLACK,
 * and than what pg_control's time is compared with, but for a stand-alone
 * backend that comes soon after a life that the header knows; a start may be
 * slow.
 *
 * A stand-alone backend begins after a clean stop here: docs/model.md, Limits.
 */
#include "common.pml"

#ifndef STARTS
#define STARTS 4		/* after the first */
#endif

mtype = { stopped, beginning, replaying, running };
mtype = { ours, others, alone };

mtype state = running;
mtype life = ours;
byte now = 1;

/* pg_control */
bool clean;				/* "shut down" */
bool clean_recovery;	/* "shut down in recovery" */
byte control_redo = 1;
byte control_time = 1;

/* postmaster.opts: when it was written, twice the time, odd if late */
byte opts = 2;

/* WAL and disk */
bool logged;			/* at or after the redo point there is the truncation's record */
bool gone;				/* the block is cut off ... */
bool grown;				/* ... and came again, as zeros */
bool cutting;			/* between the record and the hook */

/* the map's file, and the map: marks since the backup, which began at redo point 1 */
bool file = true;
bool file_shutdown;
byte file_redo = 1;
byte file_opts = 2;
byte file_start = 2;
bool file_slot;
bool slot;
bool whole = true;		/* the map knows all since the backup's start */

bool told = true;		/* the header knows of this life */
bool apart;				/* there was a life without the library, or one nothing can tell of */

/*
 * other_life: "untold" is a life of ours that was killed before it told.  A
 * stand-alone backend writes no postmaster.opts, but pg_control.
 */
/* RULE UNTOLD other_life (mapload.c): untold is false */
/* RULE KNOWN_OPTS other_life (mapload.c): untold also where the header knows this postmaster.opts */
#ifdef NO_UNTOLD
#define UNTOLD false
#else
#ifdef NO_KNOWN_OPTS
#define UNTOLD (opts == file_start)
#else
#define UNTOLD (opts == file_start && opts != file_opts)
#endif
#endif
/* RULE CONTROL_TIME other_life (mapload.c): pg_control's time is not compared */
#ifdef NO_CONTROL_TIME
#define CONTROL_TIME true
#else
#define CONTROL_TIME (2 * control_time <= file_start)
#endif
/* RULE SHUTDOWN other_life (mapload.c): HEADER_SHUTDOWN is not looked at */
#ifdef NO_SHUTDOWN
#define CLOSED false
#else
#define CLOSED (file_shutdown && file_redo == control_redo && !clean && !clean_recovery)
#endif
/* RULE OPTS other_life (mapload.c): postmaster.opts is not looked at */
#ifdef NO_OPTS
#define OTHER_OPTS false
#else
#define OTHER_OPTS (!clean && !UNTOLD && opts != file_opts)
#endif
#define OTHER_LIFE	(CLOSED -> !(UNTOLD && CONTROL_TIME) : OTHER_OPTS)

#define REPLAYED	(!logged || gone && !grown)

/* ptrack_file_begin_life */
inline begin_life()
{
	if
	:: life == ours && !told ->
		told = true;
		file_shutdown = false;
		/* RULE TELL_OPTS ptrack_file_begin_life (mapload.c): opts_time is not written */
#ifndef NO_TELL_OPTS
		file_opts = opts
#endif
	:: else
	fi
}

/* ptrack_file_start; then postmaster.opts */
inline start(whose)
{
	now++;
	life = whose;
	slot = false;
	told = false;
	if
	:: life != ours -> apart = true
	:: life == ours ->
		if
		:: file && (file_redo < control_redo || OTHER_LIFE) -> refused(!apart); file = false
		:: else
		fi;
		if
		:: file ->
			slot = file_slot;
			file_start = 2 * now;
			/* RULE TELL_LATE ptrack_file_start (mapload.c): the flag is cleared by the postmaster */
#ifdef NO_TELL_LATE
			file_shutdown = false
#endif
		:: !file -> whole = false
		fi
	fi
}

inline crash()
{
	/* nothing tells of a life that wrote postmaster.opts late and was killed before it told */
	if :: life == ours && !told && opts != file_start -> apart = true :: else fi;
	state = stopped; slot = false; cutting = false; told = false
}

inline checkpoint()
{
	control_redo++;
	logged = false;
	if
	:: life == ours -> told = true;
		file = true; file_redo = control_redo; file_slot = slot; file_opts = opts; file_shutdown = false
	:: else
	fi
}

inline cut()
{
	begin_life();
	if :: life == ours -> slot = true; file_slot = true :: else fi;
	gone = true; grown = false
}

active proctype Cluster()
{
end:
	do
	:: atomic { state == stopped && now <= STARTS && whole -> start(ours); state = beginning }
	:: atomic { state == stopped && now <= STARTS -> start(others); state = beginning }
	:: atomic { state == stopped && now <= STARTS && clean -> start(alone); state = beginning }
	/* it fails before it writes postmaster.opts, or after, or goes on */
	:: atomic {
			state == beginning ->
			if
			:: state = stopped;
				/* and of one before a start that failed like this */
				if :: life == ours && opts != file_opts -> apart = true :: else fi
			:: life != alone ->
				if :: opts = 2 * now :: opts = 2 * now + 1 fi;
				if
				:: crash()
				:: clean -> state = running
				:: state = replaying	/* or a standby */
				fi
			:: life == alone -> state = running
			fi;
			if
			:: state != stopped ->
				clean = false; clean_recovery = false; control_time = now;
				if
				:: life == alone && opts == file_opts -> control_time = file_start / 2
				:: skip
				fi
			:: else
			fi
		}

	:: atomic { state == replaying && !REPLAYED -> cut() }
	:: atomic { state == replaying && REPLAYED -> checkpoint(); state = running }
	:: atomic { state == replaying -> begin_life(); crash(); clean_recovery = true }

	/* the loader */
	:: atomic { (state == running || state == replaying) && life == ours && !told -> begin_life() }

	/* VACUUM */
	:: atomic { state == running && !gone && !logged -> logged = true; cutting = true }
	:: atomic { cutting -> cut(); cutting = false }
	:: atomic {
			state == running && gone && !grown ->
			begin_life();
			grown = true; slot = (life == ours)
		}

	:: atomic {
			(state == running || state == replaying && REPLAYED) && life == ours && whole ->
			lost(grown && !slot)
		}

	:: atomic {
			state == running && !cutting -> begin_life(); checkpoint();
			if :: life == ours -> file_shutdown = true :: else fi;
			crash(); clean = true
		}
	:: atomic { state == replaying || state == running -> crash() }
	od
}
