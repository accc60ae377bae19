/*
 * unbuffered.pml
 *	  Pages written past the buffer pool: no checkpoint waits for them.
 *
 * A process logs one page or both of a file, in one record, and then writes
 * them one by one, as index builds and bulk writes do; or it makes the file
 * grow by zeros; or it appends a page without an LSN, and logs it later (GiST
 * builds).  The file is empty when it begins, or has a page, or two: what is
 * written appends to it, with a gap in front or not, or overwrites a page.
 * The process may stop for any time between its steps, while checkpoints, a
 * backup's start and copy, and queries go by.  Its WAL need not be durable
 * when a page is written.  The server may crash between any two steps, also in
 * recovery, which ends with a checkpoint or a promotion.
 *
 * With FAILURES=1 a flush may fail.  With WRITERS=2 two processes write a page
 * each.
 */
#include "common.pml"

#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef WRITES
#define WRITES 2
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 2
#endif
#ifndef FAILURES
#define FAILURES 0
#endif
#ifndef WRITERS
#define WRITERS 1
#endif
#define POSITIONS 12	/* of WAL */

/* a page on disk: its LSN, which is the end of its record, or */
#define GONE 0			/* the file is shorter */
#define ZEROS 1
#define OLD 2			/* of long before the backup */
#define NEW 99			/* an LSN not below the backup's start */
#define BARE 100		/* contents, and an LSN that is no place in WAL */

byte ins = 4;
byte durable = 4;
byte record[POSITIONS];	/* 1: image of the first page, 2: of the second, 3: of both */

byte page[2];			/* on disk */
byte file_slot[2];		/* the map's file: marks ... */
byte file_redo = 3;		/* ... and the header */
byte control_redo = 3;

bool recovery;
byte replaying;
byte slot[2];			/* the map in memory */
byte from[WRITERS];		/* in-flight entries: the range's first page ... */
byte to[WRITERS];		/* ... and its end, 0 for none */
byte grown[WRITERS];	/* grown_redo + 1 of a process that has made the file grow ... */
byte grown_from[WRITERS];	/* ... from this page on */
byte flush_redo;
bool replayed;
byte whole_lsn;			/* in the file as well */

byte writes;
byte crashes;
byte checkpoints;
byte failures;
bool missed;			/* a checkpoint has been made without the map */

byte since;				/* the backup: L ... */
bool changed[2];		/* ... and whether the page is another than its copy ... */
bool absent[2];			/* ... or not in it */

#define NOW		(recovery -> replaying : ins)

/*
 * Fewer states: of an LSN only counts how it compares with those of backups
 * that there are or may be.
 */
#define SEEN(lsn)	(since != 0 && (lsn) >= since -> NEW : (lsn))
#define LEAST		(since != 0 -> since : control_redo)

inline compare(x, least)
{
	if
	:: x > least && x < LEAST -> x = least
	:: x < NEW && since != 0 && x >= since -> x = NEW
	:: else
	fi
}

inline compare_all()
{
	compare(slot[0], 0); compare(slot[1], 0); compare(file_slot[0], 0); compare(file_slot[1], 0);
	compare(page[0], OLD); compare(page[1], OLD);
	if
	:: whole_lsn <= LEAST -> whole_lsn = 0
	:: whole_lsn > LEAST && since != 0 -> whole_lsn = NEW
	:: else
	fi
}

/* ptrack_mark */
inline mark(first, beyond, lsn)
{
	if :: first == 0 && beyond > 0 -> RAISE(slot[0], SEEN(lsn)) :: else fi;
	if :: beyond == 2 -> RAISE(slot[1], SEEN(lsn)) :: else fi
}

inline forget(first, end)
{
	i = first;
	do :: i < end -> record[i] = 0; i++ :: else -> break od;
	i = 0
}

inline put(n, what)
{
	page[n] = SEEN(what); changed[n] = (since != 0)
}

/* ptrack_file_flush and what is around it */
inline flush_map()
{
	/* RULE FLUSH_REDO_FIRST ptrack_file_flush (mapflush.c): flush_redo is set after ptrack_mark_published */
	atomic {
		RAISE(durable, redo);
#ifndef NO_FLUSH_REDO_FIRST
		flush_redo = redo;
#endif
		lsn = NOW
	};
	/* RULE FLUSH_IN_FLIGHT ptrack_file_flush (mapflush.c): ptrack_mark_published is not called */
#ifndef NO_FLUSH_IN_FLIGHT
	do
	:: atomic { i < WRITERS && to[i] == 0 -> i++ }
	:: atomic { i < WRITERS && to[i] != 0 -> first = from[i]; beyond = to[i] };
		atomic { mark(first, beyond, lsn); first = 0; beyond = 0; i++ }
	:: atomic { i == WRITERS -> i = 0; break }
	od;
#endif
	atomic {
		lsn = 0;
#ifdef NO_FLUSH_REDO_FIRST
		flush_redo = redo;
#endif
		if :: replayed -> RAISE(whole_lsn, SEEN(redo)); replayed = false :: else fi;
		file_slot[0] = slot[0]; file_slot[1] = slot[1]
	};
	if
	:: atomic { file_redo = redo; missed = false }
	:: atomic { failures < FAILURES -> failures++; missed = true }
	fi
}

inline update_control()
{
	ins++; durable = ins;
	forget(control_redo, redo);
	control_redo = redo; redo = 0;
	compare_all()
}

proctype Checkpointer()
{
	byte lsn;
	byte redo;
	byte first;
	byte beyond;
	byte i;

end:
	do
	:: BEGIN(!recovery && checkpoints < CHECKPOINTS)
			checkpoints++;
			redo = ins
		};
		{
			flush_map();
			atomic { update_control(); END }
		} CRASHED(lsn = 0; redo = 0; first = 0; beyond = 0; i = 0)
	od
}

proctype Crash()
{
	byte i;

end:
	do
	:: atomic {
			!down && crashes < CRASHES -> crashes++;
			down = true;
			recovery = true;
			replaying = 0;
			slot[0] = 0; slot[1] = 0; flush_redo = 0;
			do :: i < WRITERS -> from[i] = 0; to[i] = 0; grown[i] = 0; grown_from[i] = 0; i++ :: else -> break od;
			/* any WAL may have become durable */
			do :: durable < ins -> durable++ :: break od;
			forget(durable, ins);
			ins = durable
		}
	od
}

/*
 * The greater the LSN asked for, the less is reported: so a backup that copies
 * a page starts at the latest redo point there can be then.
 */
proctype Backup()
{
end:
	atomic {
		!recovery && !down -> since = control_redo;
		absent[0] = page[0] == GONE; absent[1] = page[1] == GONE;
		compare_all()
	}
}

/* scan_file and scan_tail; buffered.pml has the query's steps */
#define TAIL			(replayed || since < whole_lsn)
#define IN_FLIGHT(w, n)	(from[w] <= (n) && to[w] > (n))
#if WRITERS == 2
#define MARKED(n)		(slot[n] >= since || IN_FLIGHT(0, n) || IN_FLIGHT(1, n))
#else
#define MARKED(n)		(slot[n] >= since || IN_FLIGHT(0, n))
#endif
/* RULE TAIL_LSN page_unmarked (query.c): a page whose WAL was lost stops the walk */
#ifdef NO_TAIL_LSN
#define UNMARKED(n)		(page[n] == ZEROS || page[n] == BARE)
#else
#define UNMARKED(n)		(page[n] == ZEROS || page[n] >= since)
#endif
/* RULE TAIL scan_file (query.c): scan_tail is not called */
#ifdef NO_TAIL
#define REPORTED_1		MARKED(1)
#define REPORTED_0		MARKED(0)
#else
#define REPORTED_1		(MARKED(1) || TAIL && UNMARKED(1))
#define REPORTED_0		(MARKED(0) || TAIL && (page[1] == GONE || REPORTED_1) && UNMARKED(0))
#endif
#define CHANGED(n)		(changed[n] && !(absent[n] && page[n] == ZEROS))

proctype Query()
{
end:
	do
	:: atomic { !recovery && !down && since != 0 && CHANGED(0) && !MARKED(0) -> lost(!REPORTED_0) }
	:: atomic { !recovery && !down && since != 0 && CHANGED(1) && !MARKED(1) -> lost(!REPORTED_1) }
	od
}

/* RULE BEHIND_FLUSH needs_durable_mark (hooks.c): lsn is not compared with flush_redo */
#ifdef NO_BEHIND_FLUSH
#define BEHIND	false
#else
#define BEHIND	(mine[n] <= flush_redo)
#endif
/* RULE GROWN_REDO needs_durable_mark (hooks.c): grown_redo is not compared with flush_redo */
#ifdef NO_GROWN_REDO
#define KNOWN	(grown[me] != 0)
#else
#define KNOWN	(grown[me] == flush_redo + 1)
#endif
/* RULE OVERWRITTEN needs_durable_mark (hooks.c): grows is not looked at */
#ifdef NO_OVERWRITTEN
#define GROWS	true
#else
#define GROWS	(page[n] == GONE || KNOWN && n >= grown_from[me])
#endif

/* needs_durable_mark */
inline look()
{
	atomic {
		if
		:: page[n] == GONE && !(KNOWN && grown_from[me] <= from[me]) ->
			grown[me] = flush_redo + 1; grown_from[me] = from[me]
		:: else
		fi;
		if
		:: mine[n] != ZEROS && mine[n] != BARE && (BEHIND || !GROWS) -> lsn = NOW
		:: else
		fi
	}
}

/* the lock is not needed here: file_slot only grows */
inline mark_durably()
{
	if
	:: lsn != 0 ->
		atomic { mark(from[me], to[me], lsn); lsn = 0 };
		/* RULE WRITE_THROUGH change_begin (hooks.c): ptrack_file_write_through is not called */
#ifndef NO_WRITE_THROUGH
		atomic { file_slot[0] = slot[0]; file_slot[1] = slot[1] }
#endif
	:: lsn == 0
	fi
}

#define MAY(n)		(WRITERS == 1 || me == (n))
#define APPENDS(n)	(page[n] == GONE && ((n) == 0 || page[0] != GONE))

proctype Writer(byte me)
{
	byte mine[2];			/* what to write */
	byte n;
	byte lsn;
#ifdef NO_SAMPLE_LATE
	byte sampled;
#endif

end:
	do
	:: BEGIN(!recovery && writes < WRITES && (WRITERS == 1 || me == 0 || page[0] != GONE))
			writes++;
			if
			:: MAY(0) -> record[ins] = 1; mine[0] = ins + 1; ins++
			:: MAY(1) -> record[ins] = 2; mine[1] = ins + 1; ins++
			:: WRITERS == 1 -> record[ins] = 3; mine[0] = ins + 1; mine[1] = ins + 1; ins++
			:: MAY(0) && APPENDS(0) -> mine[0] = ZEROS
			:: MAY(1) && APPENDS(1) -> mine[1] = ZEROS
			:: MAY(0) && APPENDS(0) -> mine[0] = BARE
			:: MAY(1) && APPENDS(1) -> mine[1] = BARE
			fi
		};
		{
			do
			:: atomic { n < 2 && mine[n] == 0 -> n++ }
			:: n < 2 && mine[n] != 0 ->
				/* RULE SAMPLE_LATE ptrack_unpublish (map.c): the LSN is sampled before ptrack_publish */
#ifdef NO_SAMPLE_LATE
				sampled = NOW;
#endif
				/* RULE PUBLISH_BEFORE_LOOK change_begin (hooks.c): ptrack_publish is called after needs_durable_mark */
#ifdef NO_PUBLISH_BEFORE_LOOK
				look();
#endif
				/* what lies before a page that is appended beyond the end changes, too */
				atomic {
					from[me] = (page[n] == GONE && page[0] == GONE -> 0 : n);
					to[me] = n + 1
				};
#ifndef NO_PUBLISH_BEFORE_LOOK
				look();
#endif
				/* RULE DURABLE_FIRST change_begin (hooks.c): the durable mark is made by change_end */
#ifndef NO_DURABLE_FIRST
				mark_durably();
#endif
				atomic {
					if :: n == 1 && page[0] == GONE -> put(0, ZEROS) :: else fi;
					put(n, mine[n]);
#ifdef NO_DURABLE_FIRST
				};
				mark_durably();
				atomic {
#endif
#ifdef NO_SAMPLE_LATE
					lsn = sampled; sampled = 0
#else
					lsn = NOW
#endif
				};
				atomic { mark(from[me], to[me], lsn); lsn = 0 };
				atomic {
					from[me] = 0; to[me] = 0;
					if :: mine[n] != BARE -> mine[n] = 0; n++ :: else fi
				};
				if
				:: atomic { n < 2 && mine[n] == BARE -> record[ins] = n + 1; ins++; mine[n] = 0; n++ }
				:: n == 2 || mine[n] != BARE
				fi
			:: atomic { n == 2 -> n = 0; END; break }
			od
		} CRASHED(mine[0] = 0; mine[1] = 0; n = 0; lsn = 0)
	od
}

proctype Startup()
{
	byte redo;
	byte i;

end:
	do
	/* a map that is refused is not asked */
	:: atomic { down && busy == 0 && file_redo < control_redo -> refused(!missed); break }
	:: atomic {
			down && busy == 0 && file_redo >= control_redo -> down = false;
			busy++;
			slot[0] = file_slot[0]; slot[1] = file_slot[1];
			replayed = true;
			replaying = control_redo
		};
		{
			do
			:: atomic {
					replaying < ins ->
					if :: record[replaying] & 1 -> put(0, replaying + 1); mark(0, 1, replaying) :: else fi;
					if
					:: record[replaying] & 2 ->
						if :: page[0] == GONE -> put(0, ZEROS); mark(0, 1, replaying) :: else fi;
						put(1, replaying + 1); mark(1, 2, replaying)
					:: else
					fi;
					replaying++
				}
			:: replaying == ins -> break
			od;
			if
			/* there is nobody else yet */
			:: atomic {
					redo = ins;
					RAISE(durable, redo); flush_redo = redo;
					RAISE(whole_lsn, SEEN(redo)); replayed = false;
					file_slot[0] = slot[0]; file_slot[1] = slot[1]; file_redo = redo; missed = false
				};
				atomic { update_control(); recovery = false; replaying = 0; END }
			/* a promotion: its checkpoint comes later */
			:: atomic { ins++; durable = ins; recovery = false; replaying = 0; END }
			fi
		} CRASHED(redo = 0)
	od
}

init
{
	atomic {
		if
		:: skip
		:: page[0] = OLD
		:: page[0] = OLD; page[1] = OLD
		fi;
		run Writer(0);
#if WRITERS == 2
		run Writer(1);
#endif
		run Checkpointer(); run Startup(); run Crash(); run Backup(); run Query()
	}
}
