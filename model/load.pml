/*
 * load.pml
 *	  Lives of a cluster, with the library and without, and the load rule.
 *
 * A life begins with a start (replay, if the one before did not end cleanly)
 * and ends with a clean stop or a crash.  A life without the library may run
 * with wal_level=minimal, and may replay with other binaries; it may be a
 * stand-alone backend's, or a recovery that is cut short, and leave pg_control's
 * redo point where it was.  Four things change: a block that WAL describes, the
 * same past the buffer pool with WAL from before the last redo point, the same
 * cut off and grown again by zeros, and what WAL does not describe (free space
 * and visibility maps, unlogged relations), which replay changes as well.  WAL
 * that is not durable is lost in a crash, and its positions are used again.
 * The map's file may be found damaged, by the start or by the loader later.
 *
 * One process makes the cluster's steps in any order, for the steps within a
 * write are buffered.pml's and unbuffered.pml's matter.  A checkpoint has three
 * steps here: redo point, header, pg_control; anything may come in between.
 */
#include "common.pml"

#ifndef LIVES
#define LIVES 3		/* after the first */
#endif
#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 1	/* online, beside those of starts and stops */
#endif
#define POSITIONS 16	/* of WAL */

mtype = { stopped, replaying, running };

mtype state = running;
bool library = true;
bool minimal;			/* wal_level */
bool control_minimal;	/* wal_level in pg_control */
bool clean;				/* pg_control says "shut down" */
byte ins = 2;
byte durable = 2;
bool logged[POSITIONS];	/* the record changes the block */
bool cuts[POSITIONS];	/* the record cuts it off */
bool cutting;			/* it is there, the block not cut off yet */
byte position;			/* of replay */
byte control_redo = 1;
byte life_redo;			/* control_redo when this life began to write WAL */
byte redo;				/* of the checkpoint that is under way, or 0 */
bool flushed;			/* and whether its header is written */
bool ending;			/* it is that of the end of recovery */

/* the map in memory */
byte slot;
byte slot_other;
byte init_lsn = 1;
byte whole_lsn;
bool replayed;
bool fresh;
byte start_redo = 1;
bool unread;			/* the loader has not come to the page yet */

/* the map's file */
bool file = true;
byte file_redo = 1;
byte file_init = 1;
byte file_whole;
byte file_slot;
byte file_other;

/* a backup, and whether what is on disk differs from its copies */
byte since;
bool changed;
bool gone;				/* the block is cut off ... */
bool zeros;				/* ... or has come again, as zeros */
bool changed_other;

byte lives;
byte changes;
byte checkpoints;
bool another;
bool apart;				/* something was done without the library, or damaged */

#define NOW		(state == replaying -> position : ins)
#define RESTARTPOINT	(state == replaying && !ending)
#define DEFINED	(library && state == running)
#define WHOLE	(replayed || since < whole_lsn)

/* RULE TAIL scan_file (query.c): scan_tail is not called */
#ifdef NO_TAIL
#define TAIL	false
#else
#define TAIL	WHOLE		/* the block is the last of its file */
#endif

inline mark()
{
	if :: library -> RAISE(slot, NOW) :: else fi
}

inline merge()
{
	if
	:: unread -> RAISE(slot, file_slot); RAISE(slot_other, file_other); unread = false
	:: else
	fi
}

inline mark_durably()
{
	mark();
	if
	:: library && file -> merge(); file_slot = slot
	:: else
	fi
}

/* mdtruncate: no mark */
inline cut()
{
	gone = true; zeros = false; changed = true
}

inline mark_other()
{
	if :: library -> RAISE(slot_other, NOW) :: else fi
}

inline run_on()
{
	state = running; ending = false; position = 0; control_minimal = minimal; life_redo = control_redo
}

/* judge_file and ptrack_file_start, or the start of a server without them */
inline start(with)
{
	library = with;
	slot = 0; slot_other = 0; whole_lsn = 0; init_lsn = 0; fresh = false; unread = false;
	start_redo = 0; replayed = false;
	if
	:: library ->
		start_redo = control_redo;
		/* RULE WHOLE_REPLAYED ptrack_file_start (mapload.c): replayed is not set */
#ifndef NO_WHOLE_REPLAYED
		replayed = !clean;
#endif
		if
		/* RULE STAMP judge_file (mapload.c): the header's redo point is not compared with the start's */
#ifndef NO_STAMP
		:: file && file_redo < start_redo -> refused(!apart); file = false
#endif
		/* RULE MINIMAL judge_file (mapload.c): wal_level is not looked at */
#ifndef NO_MINIMAL
		:: file && control_minimal -> refused(!apart); file = false
#endif
		:: else
		fi;
		if
		:: file -> unread = true; init_lsn = file_init; whole_lsn = file_whole
		:: !file ->
			fresh = true;
			/* RULE FRESH_INIT ptrack_file_start (mapload.c): a new map keeps the init_lsn of the one refused */
#ifdef NO_FRESH_INIT
			init_lsn = file_init;
#endif
			file_redo = 0; file_init = 0; file_whole = 0; file_slot = 0; file_other = 0
		fi
	:: else -> apart = true
	fi;
	position = control_redo;
	if
	:: clean -> run_on()
	:: !clean -> state = replaying
	fi;
	clean = false
}

/* ptrack_file_flush: all but its steps in the file, which flush.pml has */
inline flush()
{
	if
	:: library ->
		if
		:: fresh && (init_lsn == 0 || redo < init_lsn) -> init_lsn = redo
		:: else
		fi;
		if
		:: replayed ->
			/* RULE WHOLE_UNTIL ptrack_file_flush (mapflush.c): whole_lsn is not raised when replayed is cleared */
#ifndef NO_WHOLE_UNTIL
			RAISE(whole_lsn, redo);
#endif
			replayed = state == replaying
		:: else
		fi;
		/* RULE WAL_FIRST ptrack_file_flush (mapflush.c): XLogFlush is not called */
#ifndef NO_WAL_FIRST
		RAISE(durable, redo);
#endif
		merge();
		fresh = false;
		file = true; file_redo = redo; file_init = init_lsn; file_whole = whole_lsn;
		file_slot = slot; file_other = slot_other
	:: else
	fi;
	flushed = true
}

inline update_control()
{
	if :: !RESTARTPOINT -> ins++; durable = ins :: else fi;	/* the checkpoint's record */
	i = control_redo;
	do :: i < redo -> logged[i] = false; cuts[i] = false; i++ :: else -> break od;
	i = 0;
	control_redo = redo;
	redo = 0;
	flushed = false
}

inline stop()
{
	i = durable;
	do :: i < ins -> logged[i] = false; cuts[i] = false; i++ :: else -> break od;
	i = 0;
	ins = durable;
	state = stopped; redo = 0; flushed = false; minimal = false; position = 0; life_redo = 0;
	cutting = false; ending = false;
	/* memory is gone */
	slot = 0; slot_other = 0; whole_lsn = 0; init_lsn = 0; fresh = false; unread = false;
	start_redo = 0; replayed = false
}

active proctype Cluster()
{
	byte i;

end:
	do
	/* starts */
	:: atomic { state == stopped && lives < LIVES -> lives++; start(true) }
	:: atomic { state == stopped && lives < LIVES -> lives++; minimal = true; start(false) }
	:: atomic { state == stopped && lives < LIVES -> lives++; start(false) }

	/* replay: the block is redone or found done; at its end what WAL does not describe is reset */
	:: atomic {
			state == replaying && position < ins ->
			if
			:: logged[position] -> changed = true; gone = false; zeros = false; mark()
			:: cuts[position] -> cut()
			:: else
			fi;
			position++
		}
	:: atomic {
			state == replaying && position == ins && redo == 0 ->
			changed_other = (since != 0);
			if
			:: redo = ins; ending = true
			/* a promotion: the checkpoint comes later; not after wal_level=minimal, from 14 on */
			:: !control_minimal -> ins++; durable = ins; run_on()
			fi
		}

	/* changes */
	:: atomic {
			state == running && since != 0 && !cutting && changes < CHANGES -> changes++;
			changed = true; gone = false; zeros = false;
			if
			:: !minimal -> logged[ins] = true; ins++; durable = ins
			:: minimal
			fi;
			mark()
		}
	/* cut off, and grown again by zeros, which is not logged */
	:: atomic {
			state == running && !minimal && since != 0 && !gone && !cutting && changes < CHANGES -> changes++;
			cuts[ins] = true; ins++; durable = ins;
			cutting = true
		}
	:: atomic { cutting -> cut(); cutting = false }
	:: atomic { state == running && gone -> gone = false; zeros = true; mark() }
	/* past the buffer pool, with a record of this life that lies before the redo point */
	:: atomic {
			state == running && !minimal && control_redo > life_redo && since != 0 && !cutting && changes < CHANGES -> changes++;
			changed = true; gone = false; zeros = false;
			mark_durably()
		}
	:: atomic {
			state == running && since != 0 && changes < CHANGES -> changes++;
			changed_other = true;
			mark_other()
		}
	/* a record that need not be durable */
	:: atomic { state == running && !another -> another = true; ins++ }

	/* checkpoints, and a restartpoint: its checkpoint's record has been replayed */
	:: atomic {
			state == replaying && redo == 0 && position - 1 > control_redo && checkpoints < CHECKPOINTS ->
			checkpoints++; redo = position - 1
		}
	:: atomic { state == running && redo == 0 && checkpoints < CHECKPOINTS -> checkpoints++; redo = ins }
	/* RULE CONTROL_LAST CheckPointGuts (checkpoint_guts_hook): the hook is called after UpdateControlFile */
#ifndef NO_CONTROL_LAST
	:: atomic { redo != 0 && !flushed -> flush() }
	:: atomic {
			flushed ->
			update_control();
			if :: ending -> run_on() :: else fi
		}
#else
	:: atomic {
			redo != 0 ->
			i = redo;
			update_control();
			redo = i; i = 0;
			if
			:: flush()
			:: stop()		/* in between */
			fi;
			redo = 0; flushed = false;
			if :: ending -> run_on() :: else fi
		}
#endif

	/* the loader, or a query */
	:: atomic { unread -> merge() }
	/* it finds damage: begin_anew */
	:: atomic {
			unread && !apart -> apart = true;
			file = false; fresh = true; unread = false;
			/* RULE ANEW_INIT begin_anew (mapload.c): init_lsn is set to ptrack_now, which may be where replay begins */
#ifdef NO_ANEW_INIT
			init_lsn = NOW
#else
			init_lsn = 0
#endif
		}

	/* a backup, in any life */
	:: atomic { state == running && since == 0 -> since = control_redo }
	/* ptrack_init_lsn, and a query */
	:: atomic { DEFINED && init_lsn == 0 && !unread -> init_lsn = ins }
	:: atomic {
			DEFINED && since != 0 && !unread && init_lsn != 0 && since >= init_lsn ->
			lost(changed && !gone && slot < since && !(zeros && TAIL));
			lost(changed_other && slot_other < since && !WHOLE)
		}

	/* a crash */
	:: atomic { state != stopped && lives < LIVES -> stop() }
	/* a clean stop: nothing is under way, and all is written by a checkpoint */
	:: atomic {
			state == running && redo == 0 && !cutting && lives < LIVES ->
			durable = ins;
			redo = ins;
			flush();
			update_control();
			stop();
			clean = true
		}
	od
}
