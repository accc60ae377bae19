/*
 * truncate.pml
 *	  The end of a file: cut off, grown again by zeros, and looked at from its end.
 *
 * The file ends with two blocks that can be cut off, and that come back: as
 * zeros, which no WAL describes, then changed in the buffer pool, or appended
 * past it with WAL that need not be durable.  Truncation is logged before it
 * happens; a checkpoint does not wait for it (in late minors it does).  It is
 * not marked, and neither is its redo.  A crash takes what is in memory.
 *
 * The file may be another one of the same name, too: its database has gone,
 * and comes again (copydir) with pages as old as they are elsewhere.
 *
 * Lives are with the library or without it, and end by a clean stop or a
 * crash, also in replay.  Replay may be a standby's: restartpoints, backups
 * and queries once it calls itself consistent, WAL that comes, promotion.  One
 * that was promoted and crashed before a checkpoint has ended does so where
 * that recovery ended, and one that crashed in production where its own WAL
 * ended then, however often they crash in replay after that; any other one,
 * when it is consistent.  A crash may come before pg_control has a promotion.
 *
 * One process makes the cluster's steps in any order.  Writes of the pool,
 * and marks that have to be durable, are one step, for their own steps are
 * buffered.pml's and unbuffered.pml's matter.
 *
 * A client takes the present size of the file; what it lacks is zeros.
 */
#include "common.pml"

#ifndef LIVES
#define LIVES 2		/* after the first */
#endif
#ifndef CHANGES
#define CHANGES 2	/* logged */
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 1	/* beside those of starts and stops */
#endif
#define POSITIONS 20	/* of WAL */
#define FIRST 3			/* redo point */

/* labelled.pml begins with a standby that is behind its disk */
#ifdef LABELLED
#define STANDBY	true
#else
#define STANDBY	false
#endif

mtype = { stopped, replaying, running };

/* a page on disk: its LSN, or */
#define GONE 0			/* the file is shorter */
#define ZEROS 1			/* no LSN */
#define OLD 2			/* of long before the backup */
#define NEW 99			/* not below its start */

/* records */
#define CUT(n)		(1 + (n))	/* to n blocks */
#define PAGE(n)		(4 + (n))	/* image of a page */
#define COPY		6			/* of a file with one old page */

bool library = true;
bool clean;				/* pg_control says "shut down" */
byte ins = FIRST + 1;
byte durable = FIRST + 1;
byte record[POSITIONS];
byte control_redo = FIRST;
bool production;		/* pg_control does not say that it was in recovery */
bool wrote;				/* and something has been written since the end of one */
#ifndef LABELLED
mtype state = running;
byte position;			/* of replay */
byte consistent;		/* where replay is, or was, past what had been on disk */
byte ended;				/* minRecoveryPoint, where it is behind the disk, or may come to be */
byte claimed;			/* where the server calls itself consistent */
byte known;				/* known_redo of this life; 0 where claimed is past the disk */
bool ahead;				/* the map's, of this life */
#else
mtype state = replaying;
byte position = FIRST;
byte consistent = FIRST + 1;
byte ended = FIRST + 1;
byte claimed = FIRST + 1;
byte known = FIRST;
bool ahead = true;
#endif
byte label;				/* labelled.pml's: START WAL LOCATION of a backup that has begun, or 0 */
byte redo;				/* of the checkpoint that is under way, or 0 */
bool flushed;			/* and whether its header is written */

byte page[2] = OLD;		/* on disk */
byte pool[2];			/* a dirty buffer: its LSN */

byte cutting;			/* the record is there, the file not cut yet: CUT(n) */
byte appending;			/* the record is there, the page not written yet: its LSN */
byte growing;			/* 1: published, 2: and grown */
byte copying;			/* 1: published, 2: and copied */
byte next;				/* the block that comes with it */

/* the map */
byte slot[2];
byte whole_lsn;
bool replayed = STANDBY;

/* and its file */
byte file_slot[2];
byte file_redo = FIRST;
byte file_whole;
bool file_ahead = STANDBY;
bool file_recovery = STANDBY;	/* it knows of the recovery that pg_control is in */

/* a backup, and whether what is on disk differs from its copies */
byte since;
byte copied;			/* blocks copied */
bool changed[2];
bool absent[2];			/* the copy ends before the block */

byte lives;
byte changes;
byte checkpoints;
bool apart;				/* a life without the library has been */

/* ptrack_now; known_redo is above the position only where replay began with a label */
#define NOW		(state == replaying -> (position > known -> position : known) : ins)
/* a restartpoint's is that of a checkpoint whose record has been replayed */
#define LATEST_REDO	(state == replaying -> position - 1 : ins)
#define IDLE	(cutting == 0 && appending == 0 && growing == 0 && copying == 0)
#define SERVES	(state == running || state == replaying && position >= claimed)
#define END_OF_FILE	(page[0] == GONE -> 0 : 1)

/*
 * Fewer states: of an LSN only counts how it compares with those of backups
 * that there are or may be.
 */
#define LEAST		(since != 0 -> since : control_redo)
#define SEEN(lsn)	(since != 0 && (lsn) >= since -> NEW : (lsn))

inline compare(x, least)
{
	if
	:: x > least && x < LEAST -> x = least
	:: since != 0 && x >= since -> x = NEW
	:: else
	fi
}

inline compare_whole(x)
{
	if
	:: x <= LEAST -> x = 0
	:: x > LEAST && since != 0 -> x = NEW
	:: else
	fi
}

inline compare_all()
{
	compare(slot[0], 0); compare(slot[1], 0); compare(file_slot[0], 0); compare(file_slot[1], 0);
	compare(page[0], OLD); compare(page[1], OLD);
	compare_whole(whole_lsn); compare_whole(file_whole)
}

#define CHANGE(n)	changed[n] = copied > n

inline mark(n)
{
	if :: library -> RAISE(slot[n], SEEN(NOW)) :: else fi
}

inline mark_durably(n)
{
	mark(n);
	if :: library -> file_slot[n] = slot[n] :: else fi
}

/* change_begin, when recovery has ended */
inline written()
{
	if :: state == running && ended != 0 -> wrote = true :: else fi;
	/* RULE RECOVERY_ENDED change_begin (hooks.c): ptrack_file_recovery_ended is not called */
#ifndef NO_RECOVERY_ENDED
	if :: library && state == running -> file_recovery = false :: else fi
#else
	skip
#endif
}

/* FlushBuffer */
inline write_buffer(n)
{
	if
	:: pool[n] != 0 ->
		RAISE(durable, pool[n] + 1);
		written();
		page[n] = SEEN(pool[n]); pool[n] = 0; CHANGE(n);
		mark(n)
	:: else
	fi
}

inline cut_block(n)
{
	if :: page[n] != GONE -> page[n] = GONE; CHANGE(n) :: else fi;
	pool[n] = 0
}

inline cut(what)
{
	cut_block(1);
	if :: what == CUT(0) -> cut_block(0) :: else fi
}

/* the file is made again */
inline copy_file()
{
	page[0] = OLD; page[1] = GONE; pool[0] = 0; pool[1] = 0;
	CHANGE(0); CHANGE(1)
}

/* before the copy, and after it */
inline mark_copy(done)
{
	/* RULE MARK_COPY copydir_changed (hooks.c): nothing is marked */
#ifndef NO_MARK_COPY
	if :: done -> mark(0) :: else -> written(); mark_durably(0) fi
#else
	skip
#endif
}

/* mdzeroextend, and what redo makes of a page that is not there */
inline grow(n)
{
	page[n] = ZEROS; CHANGE(n)
}

inline redo_page(n)
{
	/* RULE REDO_BLOCK redo_block (hooks.c): nothing is marked */
	/* RULE REDO_CONSISTENT redo_block (hooks.c): nothing is marked once the server calls itself consistent */
#ifndef NO_REDO_BLOCK
#ifdef NO_REDO_CONSISTENT
	if :: position < claimed -> mark(n) :: else fi;
#else
	mark(n);
#endif
#endif
	if :: n == 1 && page[0] == GONE -> grow(0); mark(0) :: else fi;
	if :: page[n] == GONE -> grow(n); mark(n) :: else fi;
	pool[n] = position
}

/* memory is gone, or is not there yet */
inline forget()
{
	slot[0] = 0; slot[1] = 0; whole_lsn = 0; replayed = false;
	pool[0] = 0; pool[1] = 0;
	cutting = 0; appending = 0; growing = 0; copying = 0; next = 0;
	redo = 0; flushed = false; position = 0; consistent = 0; claimed = 0; known = 0; ahead = false
#ifdef LABELLED
	; start_redo = 0
#endif
}

/* start_of_replay */
#define START	(label != 0 -> label : control_redo)

/* judge_file; a map that is refused begins anew, and is not asked: load.pml has that */
/* RULE STAMP judge_file (mapload.c): the header's redo point is not compared with the start's */
#ifdef NO_STAMP
#define ACCEPTED	true
#else
#define ACCEPTED	(file_redo >= START)
#endif

/* what servers without the library leave of a recovery that the header knows of is a limit (docs/model.md) */
#define NOTICED	(library || !file_recovery)

/* ptrack_file_start, or the start of a server without them; a standby's, or after a crash */
inline start(with, standby)
{
	lives++;
	library = with;
	if
	:: library ->
		slot[0] = file_slot[0]; slot[1] = file_slot[1]; whole_lsn = file_whole;
		/* RULE WHOLE_REPLAYED ptrack_file_start (mapload.c): replayed is not set */
#ifndef NO_WHOLE_REPLAYED
		replayed = standby
#endif
	:: !library -> apart = true
	fi;
	if
	:: !standby -> state = running
	:: else ->
		state = replaying; position = START; consistent = ins;
		claimed = (ended != 0 -> ended : ins);
		if
		:: library ->
			ahead = file_ahead;
			if :: production && ended != 0 -> ahead = true :: else fi;
			/* RULE RECOVERY_BEGUN ptrack_file_start (mapload.c): the header need not know of the recovery that pg_control is in */
#ifndef NO_RECOVERY_BEGUN
			if :: !production && !file_recovery -> refused(!apart && ended == 0); ahead = true :: else fi;
#endif
			/* RULE RECOVERY_NOTED note_in_file (mapload.c): the flag is not set */
#ifndef NO_RECOVERY_NOTED
			file_recovery = true;
#endif
			if
			:: ahead && ended != 0 ->
				known = control_redo;
				RAISE(known, file_redo);
#ifdef LABELLED
				RAISE(known, file_known);
				file_known = known		/* each header has it from now on */
#endif
			:: else
			fi;
			/* RULE AHEAD_LATER ptrack_file_start (mapload.c): ahead is not set where there is no minRecoveryPoint */
#ifndef NO_AHEAD_LATER
			if :: production && !clean -> ahead = true :: else fi;
#endif
			/* RULE AHEAD note_in_file (mapload.c): the flag is not set */
#ifndef NO_AHEAD
			file_ahead = ahead;
#endif
		:: !NOTICED -> ended = 0
		:: else
		fi;
		/* the background writer does not move what it has not found */
		if :: production && !clean && ended == 0 && NOTICED -> ended = ins :: else fi;
		/* pg_control has the label's as replay begins */
		control_redo = START;
#ifdef LABELLED
		start_redo = (known != 0 -> control_redo : 0);
#endif
		label = 0
	fi;
	production = false;
	clean = false
}

/* CheckPointBuffers and ptrack_file_flush */
inline flush()
{
	write_buffer(0); write_buffer(1);
	if
	:: library ->
		if :: growing != 0 -> mark(next) :: else fi;
		if
		:: replayed ->
			/* RULE WHOLE_UNTIL ptrack_file_flush (mapflush.c): whole_lsn is not raised when replayed is cleared */
#ifndef NO_WHOLE_UNTIL
			RAISE(whole_lsn, redo);
#endif
			/* not for a restartpoint that the end of recovery has overtaken */
			if :: state == running && redo >= consistent -> replayed = false; consistent = 0 :: else fi
		:: else
		fi;
		RAISE(durable, redo);
		file_redo = redo; file_whole = whole_lsn;
		file_ahead = (state == running -> false : ahead);
		/* RULE RECOVERY_KEPT make_header (mapflush.c): the flag is not set */
#ifndef NO_RECOVERY_KEPT
		if :: state == running -> file_recovery = false :: else fi;
#else
		file_recovery = false;
#endif
		file_slot[0] = slot[0]; file_slot[1] = slot[1]
	:: else
	fi;
	flushed = true
}

inline update_control()
{
	if
	:: state == running -> ins++; durable = ins		/* the checkpoint's record */
	:: else
	fi;
	i = control_redo;
	do :: label == 0 && i < redo -> record[i] = 0; i++ :: else -> break od;
	i = 0;
	control_redo = redo;
	if
	:: state == running -> ended = 0; wrote = false
	:: state != running && ended != 0 -> RAISE(ended, redo)
	:: else
	fi;
	redo = 0;
	flushed = false;
	compare_all()
}

inline stop()
{
	i = durable;
	do :: i < ins -> record[i] = 0; i++ :: else -> break od;
	i = 0;
	ins = durable;
	/* the write of pg_control that ends recovery may be held up; if nothing was written, its minRecoveryPoint is right */
	if
	:: production = state == running
	:: state == running && ended != 0 && NOTICED ->
		production = false;
		if :: !wrote && file_recovery -> ended = 0 :: else fi
	fi;
	wrote = false;
	state = stopped; library = true;
#ifdef LABELLED
	/* what comes next is what that backup has, or not */
	if :: label != 0 -> label = 0 :: true fi;
#endif
	forget()
}

/* page_unmarked */
/* RULE TAIL_ZEROS page_unmarked (query.c): a page without an LSN stops the walk */
/* RULE TAIL_LSN page_unmarked (query.c): a page whose WAL was lost stops the walk */
#ifdef NO_TAIL_ZEROS
#define UNMARKED(n)		(page[n] >= since)
#else
#ifdef NO_TAIL_LSN
#define UNMARKED(n)		(page[n] == ZEROS)
#else
#define UNMARKED(n)		(page[n] == ZEROS || page[n] >= since)
#endif
#endif

/* scan_file and scan_tail */
/* RULE TAIL scan_file (query.c): scan_tail is not called */
#ifdef NO_TAIL
#define TAIL	false
#else
#define TAIL	(replayed || since < whole_lsn)
#endif
#define MARKED(n)		(slot[n] >= since || growing != 0 && next == (n) || copying != 0)
#define REPORTED_1		(MARKED(1) || TAIL && UNMARKED(1))
/* RULE TAIL_REPORTED scan_tail (query.c): a block that is reported already stops the walk */
#ifdef NO_TAIL_REPORTED
#define PASSED_1		(page[1] == GONE || !MARKED(1) && UNMARKED(1))
#else
#define PASSED_1		(page[1] == GONE || REPORTED_1)
#endif
#define REPORTED_0		(MARKED(0) || TAIL && PASSED_1 && UNMARKED(0))

/* scan_cluster */
/* RULE EARLY scan_cluster (query.c): behind is false */
#ifdef NO_EARLY
#define EVERYTHING	false
#else
#ifndef EARLY_UNTIL
#define EARLY_UNTIL	known
#endif
#define EVERYTHING	(since <= EARLY_UNTIL)
#endif

#define CHANGED(n)		(copied > (n) && changed[n] && page[n] != GONE && \
						 !(absent[n] && page[n] == ZEROS))

active proctype Cluster()
{
	byte i;

end:
	do
	/* starts */
	:: atomic { state == stopped && lives < LIVES && ACCEPTED -> start(true, !clean) }
	:: atomic { state == stopped && lives < LIVES && ACCEPTED && clean -> start(true, true) }
	:: atomic { state == stopped && !ACCEPTED -> refused(!apart) }
	:: atomic { state == stopped && lives + 1 < LIVES && !STANDBY -> start(false, !clean) }

	/* replay */
	:: atomic {
			state == replaying && position < ins ->
			if
			:: record[position] == CUT(0) || record[position] == CUT(1) -> cut(record[position])
			:: record[position] == PAGE(0) -> redo_page(0)
			:: record[position] == PAGE(1) -> redo_page(1)
			:: record[position] == COPY -> mark_copy(false); copy_file(); mark_copy(true)
			:: else
			fi;
			position++
		}
	/* to a standby */
	:: atomic {
			state == replaying && position == ins && changes < CHANGES -> changes++;
			if
			:: page[0] != GONE -> record[ins] = CUT(0)
			:: page[1] != GONE -> record[ins] = CUT(1)
			:: record[ins] = PAGE(0)
			:: record[ins] = PAGE(1)
#ifdef LABELLED
			:: true			/* a checkpoint's */
#endif
			fi;
			ins++; durable = ins
		}
	/* the end of recovery, or a promotion: its checkpoint comes later */
	:: atomic {
			state == replaying && position == ins && !STANDBY ->
			consistent = (library -> ins : 0); state = running; position = 0;
			ended = ins; claimed = 0; known = 0; label = 0;
			if :: redo == 0 -> redo = ins :: ins++ fi
		}

	/* truncation */
	:: atomic {
			state == running && IDLE && page[0] != GONE && changes < CHANGES -> changes++;
			if :: cutting = CUT(0) :: page[1] != GONE -> cutting = CUT(1) fi;
			record[ins] = cutting; ins++; durable = ins
		}
	:: atomic { cutting != 0 -> cut(cutting); cutting = 0 }

	/* mdzeroextend */
	/* RULE MARK_GROWTH mdzeroextend (change_begin_hook): the hook is not called */
	:: atomic {
			state == running && IDLE && page[1] == GONE ->
			next = END_OF_FILE;
#ifdef NO_MARK_GROWTH
			grow(next); next = 0
#else
			written(); growing = 1
#endif
		}
	:: atomic { growing == 1 -> grow(next); growing = 2 }
	:: atomic { growing == 2 -> mark(next); growing = 0; next = 0 }

	/* past the buffer pool */
	:: atomic {
			state == running && IDLE && page[1] == GONE && changes < CHANGES -> changes++;
			next = END_OF_FILE;
			appending = ins;
			record[ins] = PAGE(next); ins++
		}
	:: atomic {
			appending != 0 ->
			/* needs_durable_mark: WAL before the newest flush of this life, which file_redo stands for */
			if :: appending < file_redo -> mark_durably(next) :: else -> mark(next) fi;
			written();
			page[next] = SEEN(appending); CHANGE(next);
			appending = 0; next = 0
		}

	/* in the pool */
	:: atomic {
			state == running && IDLE && page[0] != GONE && changes < CHANGES -> changes++;
			if
			:: record[ins] = PAGE(0); pool[0] = ins
			:: page[1] != GONE -> record[ins] = PAGE(1); pool[1] = ins
			fi;
			ins++
		}
	:: atomic { pool[0] != 0 -> write_buffer(0) }
	:: atomic { pool[1] != 0 -> write_buffer(1) }

	/* gone, and come again: a crash before the record leaves files of no database */
	:: atomic { state == running && IDLE && changes < CHANGES -> changes++; copying = 1; mark_copy(false) }
	:: atomic { copying == 1 -> copy_file(); copying = 2 }
	:: atomic { copying == 2 -> mark_copy(true); copying = 0; record[ins] = COPY; ins++; durable = ins }

	/* checkpoints and restartpoints */
	:: atomic {
			state != stopped && redo == 0 && checkpoints < CHECKPOINTS && LATEST_REDO > control_redo ->
			checkpoints++; redo = LATEST_REDO
		}
	:: atomic { redo != 0 && !flushed -> flush() }
	:: atomic { flushed -> update_control() }

	/* a backup, in any life */
	:: atomic { SERVES && since == 0 -> since = control_redo; compare_all() }
	:: atomic {
			SERVES && since != 0 && copied < 2 ->
			changed[copied] = false; absent[copied] = page[copied] == GONE; copied++
		}
#ifdef LABELLED
	/* another one, with a label */
	:: atomic { SERVES && known != 0 && !labels -> labels = true; label = control_redo }
#endif
	/* a query */
	:: atomic {
			SERVES && library && copied > 0 ->
			lost(!EVERYTHING && CHANGED(0) && !REPORTED_0);
			lost(!EVERYTHING && CHANGED(1) && !REPORTED_1)
		}

	/* a crash, and a clean stop */
	:: atomic { state != stopped && lives < LIVES && copying != 2 -> stop() }
	:: atomic {
			state == running && IDLE && redo == 0 && lives < LIVES ->
			durable = ins;
			redo = ins;
			flush();
			update_control();
			stop();
			clean = true
		}
	od
}
