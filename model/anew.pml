/*
 * anew.pml
 *	  A map that begins in the replay of a base backup, and a backup that began in it.
 *
 * A primary takes checkpoints, and its block changes as WAL does not tell (hint
 * bits).  Two backups of it begin, each with the redo point that pg_control has,
 * and copy the block when they come to it: the base backup, which copies
 * pg_control last and no map, and the parent.  The base backup is restored and
 * replays its WAL with the library or without, makes restartpoints, is killed
 * at any step, loses its map, is promoted.  When it is consistent it is asked
 * what has changed since the parent.  It changes nothing by itself.
 *
 * A checkpoint of the primary has two steps: its redo point, and its record with
 * pg_control; a restartpoint has three, beside a flush that may fail.
 */
#include "common.pml"

#ifndef CHANGES
#define CHANGES 1
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 2	/* of the primary */
#endif
#ifndef LIVES
#define LIVES 3			/* of the restored server */
#endif
#define POSITIONS 8		/* of WAL */
#define NONE 254		/* not copied yet */

mtype = { primary, stopped, replaying, running };

mtype state = primary;

/* the primary, and its WAL */
byte ins = 2;
byte control_redo = 1;
byte redo;				/* of the checkpoint that is under way, or 0 */
byte record[POSITIONS];	/* the redo point of the checkpoint that it ends, or 0 */
byte disk;				/* the block, with its hint bits */
byte changes;
byte checkpoints;

/* the parent */
byte since;
byte copy = NONE;

/* the base backup */
byte label;				/* START WAL LOCATION, until it is restored */
byte copy_disk = NONE;
byte copy_control = NONE;
byte ends;				/* the record of its end */

/* the restored server's pg_control: control_redo, and ... */
byte backup_start;		/* backupStartPoint */
byte min_recovery;		/* minRecoveryPoint */

/* its life */
bool library;
byte lives;
byte position;			/* of replay */
byte known_redo;
byte known_end;
bool backup_open;
byte found;				/* from here on no backup began before this start, or NONE if that is not known */
bool fresh;
byte init_lsn;
bool flushed;			/* the header is written, or could not be ... */
bool whole;				/* ... and which of the two */
byte own;				/* redo point at which a backup of this server may begin, or 0 */

/* the map's file */
bool file;
byte file_redo;
byte file_known;
byte file_init;

#define NOW			(state == replaying -> (position > known_redo -> position : known_redo) : ins)
#define KNOWN_FROM	(known_redo + 1 > known_end -> known_redo + 1 : known_end)
#define CONSISTENT	(state == running || (state == replaying && backup_start == 0 && position >= min_recovery))

inline start(with)
{
	byte start_redo = control_redo;

	library = with;
	known_redo = 0; known_end = 0; init_lsn = 0; fresh = false; backup_open = false;
	if :: label != 0 -> start_redo = label :: else fi;
	if
	:: library ->
		/* RULE KNOWN_CONTROL ptrack_file_start (mapload.c): pg_control's redo point is not looked at where there is a backup_label */
#ifdef NO_KNOWN_CONTROL
		known_redo = start_redo;
#else
		known_redo = (start_redo > control_redo -> start_redo : control_redo);
#endif
		if
		:: file && file_redo < start_redo -> file = false
		:: else
		fi;
		if
		:: file ->
			RAISE(known_redo, file_redo); RAISE(known_redo, file_known);
			file_known = known_redo;
			init_lsn = file_init;
			fresh = init_lsn == 0
		:: !file -> fresh = true; file_redo = 0; file_known = 0; file_init = 0
		fi;
		/* RULE BACKUP_OPEN ptrack_file_start (mapload.c): backup_open is not set */
#ifndef NO_BACKUP_OPEN
		/* RULE STARTED ptrack_file_start (mapload.c): backup_open is set where pg_control has no backup, too */
#ifndef NO_STARTED
		backup_open = backup_start != 0;
#else
		backup_open = true;
#endif
#endif
		/* RULE KNOWN_END ptrack_file_start (mapload.c): known_end is not set */
#ifndef NO_KNOWN_END
		known_end = min_recovery;
#endif
		found = (backup_start != 0 -> NONE : (known_redo + 1 > min_recovery -> known_redo + 1 : min_recovery));
		RAISE(found, control_redo + 1)
	:: else
	fi;
	/* a crash may come before it has been renamed */
	if
	:: label != 0 -> backup_start = label; control_redo = label; RAISE(min_recovery, label);
		if :: label = 0 :: true fi
	:: else
	fi;
	position = start_redo;
	state = replaying;
	start_redo = 0
}

inline known_since()
{
	byte from = KNOWN_FROM;

	if
	:: backup_open && redo < position && state == replaying ->
		/* RULE ENDED known_from (mapflush.c): minRecoveryPoint is taken although pg_control still has the backup */
#ifdef NO_ENDED
		RAISE(from, min_recovery)
#else
		if
		:: backup_start == 0 && min_recovery != 0 -> RAISE(from, min_recovery)
		:: else -> from = NONE
		fi
#endif
	:: else
	fi;
	if
	:: fresh && from != NONE ->
		/* RULE KNOWN_SINCE known_since (mapflush.c): redo is not compared with what is known */
#ifdef NO_KNOWN_SINCE
		from = redo;
#else
		RAISE(from, redo);
#endif
		if
		:: init_lsn == 0 || from < init_lsn -> init_lsn = from
		:: else
		fi
	:: else
	fi;
	from = 0
}

inline flush()
{
	if
	:: library ->
		known_since();
		if
		:: true ->
			file = true; file_redo = redo; file_known = known_redo; file_init = init_lsn;
			fresh = init_lsn == 0;
			whole = true
		:: true		/* it fails */
		fi
	:: else
	fi;
	flushed = true
}

inline stop()
{
	state = stopped; redo = 0; flushed = false; whole = false; own = 0; position = 0;
	library = false; known_redo = 0; known_end = 0; backup_open = false; found = 0; fresh = false; init_lsn = 0
}

active proctype Cluster()
{
end:
	do
	/* the primary */
	:: atomic { state == primary && changes < CHANGES -> changes++; disk++ }
	:: atomic { state == primary && redo == 0 && checkpoints < CHECKPOINTS -> checkpoints++; redo = ins }
	:: atomic { state == primary && redo != 0 -> record[ins] = redo; control_redo = redo; redo = 0; ins++ }

	/* one that begins when pg_control has been copied: docs/model.md, Limits */
	:: atomic { state == primary && since == 0 && copy_control == NONE -> since = control_redo }
	:: atomic { state == primary && since != 0 && copy == NONE -> copy = disk }

	:: atomic { state == primary && label == 0 -> label = control_redo }
	:: atomic { state == primary && label != 0 && copy_disk == NONE -> copy_disk = disk }
	:: atomic { state == primary && copy_disk != NONE && copy_control == NONE -> copy_control = control_redo }
	:: atomic { state == primary && copy_control != NONE && ends == 0 -> ends = ins; ins++ }
	:: atomic {
			state == primary && ends != 0 && copy != NONE ->
			disk = copy_disk; control_redo = copy_control;
			redo = 0; changes = 0; checkpoints = 0; copy_disk = 0; copy_control = 0;
			state = stopped
		}

	/* lives of the restored server; the map may be found damaged */
	:: atomic { state == stopped && lives < LIVES -> lives++; start(true) }
	:: atomic { state == stopped && lives < LIVES -> lives++; start(false) }
	:: atomic { state == stopped && file -> file = false; file_redo = 0; file_known = 0; file_init = 0 }

	:: atomic {
			state == replaying && position < ins ->
			position++;
			if
			:: position == ends + 1 -> backup_start = 0; RAISE(min_recovery, position)
			:: else
			fi
		}
	/* a page is written */
	:: atomic { state == replaying && min_recovery < position -> min_recovery = position }
	/* a restartpoint: the record of a checkpoint has been replayed */
	:: atomic {
			state == replaying && redo == 0 && position > 0 && record[position - 1] > control_redo ->
			redo = record[position - 1]
		}
	:: atomic { redo != 0 && state != primary && !flushed -> flush() }
	:: atomic {
			state != primary && flushed ->
			control_redo = redo;
			if
			:: state == replaying -> RAISE(min_recovery, position)
			:: state == running -> min_recovery = 0
			fi;
			own = (whole -> redo : 0);
			redo = 0; flushed = false; whole = false
		}
	/* the end of recovery: its checkpoint comes then, or later */
	:: atomic { state == replaying && position == ins && backup_start == 0 && redo == 0 -> state = running; position = 0 }
	:: atomic { state == running && redo == 0 && control_redo < ins -> redo = ins }

	:: atomic { state != primary && state != stopped && lives < LIVES -> stop() }

	/* ptrack_init_lsn, and a query */
	:: atomic {
			library && CONSISTENT && init_lsn == 0 ->
			init_lsn = (NOW > KNOWN_FROM -> NOW : KNOWN_FROM)
		}
	:: atomic {
			library && CONSISTENT && init_lsn != 0 && since >= init_lsn ->
			lost(disk != copy)
		}
	/* a parent of its own, that began behind all that this start has found */
	:: atomic {
			library && CONSISTENT && own >= found ->
			refused(own < init_lsn)
		}
	od
}
