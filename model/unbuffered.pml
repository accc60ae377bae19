/*
 * unbuffered.pml
 *	  Pages written past the buffer pool: no checkpoint waits for them.
 *
 * A process publishes one page or both of a file, logs them in one record, and
 * then writes them one by one, as index builds and bulk writes do, and is asked
 * for them before that by a backup that copies them after; or it logs them and
 * does not tell, as an access method may that has WAL of its own, which is what
 * no backup may ask for then; or it makes the file
 * grow by zeros; or it appends a page without an LSN, and logs it later (GiST
 * builds).  The file is empty when it begins, or has a page, or two: what is
 * written appends to it, with a gap in front or not, or overwrites a page.
 * The process may stop for any time between its steps, while checkpoints, a
 * backup's start and copy, and queries go by.  Its WAL need not be durable
 * when a page is written.  The server may crash between any two steps, also in
 * recovery, which ends with a checkpoint or a promotion.
 *
 * With FAILURES=1 a flush may fail.  With WRITERS=2 two processes write a page
 * each.  With PAGES=3 the file has a third page (grown.pml).
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
#ifndef PAGES
#define PAGES 2
#endif
#define POSITIONS 12	/* of WAL */

#if PAGES == 2
#define EACH(what)	what(0); what(1)
#define SIZE		(page[0] == GONE -> 0 : (page[1] == GONE -> 1 : 2))
#else
#define EACH(what)	what(0); what(1); what(2)
#define SIZE		(page[0] == GONE -> 0 : (page[1] == GONE -> 1 : (page[2] == GONE -> 2 : 3)))
#endif

/* a page on disk: its LSN, which is the end of its record, or */
#define GONE 0			/* the file is shorter */
#define ZEROS 1
#define OLD 2			/* of long before the backup */
#define NEW 99			/* an LSN not below the backup's start */
#define BARE 100		/* contents, and an LSN that is no place in WAL */

byte ins = 4;
byte durable = 4;
byte record[POSITIONS];	/* images: 1 of the first page, 2 of the second, 4 of the third, or a sum */

byte page[PAGES];		/* on disk */
byte file_slot[PAGES];	/* the map's file: marks ... */
byte file_redo = 3;		/* ... and the header */
byte control_redo = 3;

bool recovery;
byte replaying;
byte slot[PAGES];		/* the map in memory */
byte from[WRITERS];		/* in-flight entries: the range's first page ... */
byte to[WRITERS];		/* ... and its end, 0 for none */
byte logged[WRITERS];	/* what is to be written later, as "record" has it */
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
bool changed[PAGES];	/* ... and whether the page is another than its copy ... */
bool absent[PAGES];		/* ... or not in it */

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

#define COMPARE(n)	compare(slot[n], 0); compare(file_slot[n], 0); compare(page[n], OLD)

inline compare_all()
{
	EACH(COMPARE);
	if
	:: whole_lsn <= LEAST -> whole_lsn = 0
	:: whole_lsn > LEAST && since != 0 -> whole_lsn = NEW
	:: else
	fi
}

/* ptrack_mark */
inline mark_one(n, first, beyond, lsn)
{
	if :: first <= n && beyond > n -> RAISE(slot[n], SEEN(lsn)) :: else fi
}

inline mark(first, beyond, lsn)
{
#if PAGES == 3
	mark_one(2, first, beyond, lsn);
#endif
	mark_one(1, first, beyond, lsn);
	mark_one(0, first, beyond, lsn)
}

inline mark_logged(pages, lsn)
{
	if :: pages & 1 -> RAISE(slot[0], SEEN(lsn)) :: else fi;
	if :: pages & 2 -> RAISE(slot[1], SEEN(lsn)) :: else fi;
#if PAGES == 3
	if :: pages & 4 -> RAISE(slot[2], SEEN(lsn)) :: else fi;
#endif
	skip
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

#define WRITE(n)	file_slot[n] = slot[n]
#define READ(n)		slot[n] = file_slot[n]

/* the gap before a page that is appended beyond the end */
inline fill_up(gap, n)
{
	if :: n > gap && page[gap] == GONE -> put(gap, ZEROS) :: else fi
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
	:: atomic { i < WRITERS -> first = logged[i]; mark_logged(first, lsn); first = to[i] };
		if
		:: first == 0
		:: atomic { first != 0 -> first = from[i]; beyond = to[i] };
			atomic { mark(first, beyond, lsn); beyond = 0 }
		fi;
		atomic { first = 0; i++ }
	:: atomic { i == WRITERS -> i = 0; break }
	od;
#endif
	atomic {
		lsn = 0;
#ifdef NO_FLUSH_REDO_FIRST
		flush_redo = redo;
#endif
		if :: replayed -> RAISE(whole_lsn, SEEN(redo)); replayed = false :: else fi;
		EACH(WRITE)
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

#define LOSE(n)		slot[n] = 0

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
			EACH(LOSE); flush_redo = 0;
			do
			:: i < WRITERS -> from[i] = 0; to[i] = 0; logged[i] = 0; grown[i] = 0; grown_from[i] = 0; i++
			:: else -> break
			od;
			/* any WAL may have become durable */
			do :: durable < ins -> durable++ :: break od;
			forget(durable, ins);
			ins = durable
		}
	od
}

#define ABSENT(n)	absent[n] = page[n] == GONE

/*
 * The greater the LSN asked for, the less is reported: so a backup that copies
 * a page starts at the latest redo point there can be then.
 */
proctype Backup()
{
end:
	atomic {
		!recovery && !down -> since = control_redo;
		EACH(ABSENT);
		compare_all()
	}
}

/* scan_file and scan_tail; buffered.pml has the query's steps */
#define TAIL			(replayed || since < whole_lsn)
#define IN_FLIGHT(w, n)	(from[w] <= (n) && to[w] > (n) || (logged[w] & (1 << (n))))
#if WRITERS == 2
#define PUBLISHED(n)	(IN_FLIGHT(0, n) || IN_FLIGHT(1, n))
#else
#define PUBLISHED(n)	IN_FLIGHT(0, n)
#endif
#define MARKED(n)		(slot[n] >= since || PUBLISHED(n))
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
#if PAGES == 2
#define REPORTED_1		(MARKED(1) || TAIL && UNMARKED(1))
#else
#define REPORTED_2		(MARKED(2) || TAIL && UNMARKED(2))
#define REPORTED_1		(MARKED(1) || TAIL && (page[2] == GONE || REPORTED_2) && UNMARKED(1))
#endif
#define REPORTED_0		(MARKED(0) || TAIL && (page[1] == GONE || REPORTED_1) && UNMARKED(0))
#endif
#define CHANGED(n)		(changed[n] && !(absent[n] && page[n] == ZEROS))

proctype Query()
{
end:
	do
	:: atomic { !recovery && !down && since != 0 && CHANGED(0) && !MARKED(0) -> lost(!REPORTED_0) }
	:: atomic { !recovery && !down && since != 0 && CHANGED(1) && !MARKED(1) -> lost(!REPORTED_1) }
#if PAGES == 3
	:: atomic { !recovery && !down && since != 0 && CHANGED(2) && !MARKED(2) -> lost(!REPORTED_2) }
#endif
	od
}

#define HAS_LSN(n)	(mine[n] != 0 && mine[n] != ZEROS && mine[n] != BARE)

/* RULE BEHIND_FLUSH needs_durable_mark (hooks.c): lsn is not compared with flush_redo */
#ifdef NO_BEHIND_FLUSH
#define BEHIND	false
#else
#define BEHIND	(mine[n] <= flush_redo && !(logged[me] & (1 << n)))
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
#define GROWS	(page[n] == GONE || KNOWN && BEYOND_GROWN_FROM)
#endif
/* two pages do not need it: grown.pml has its rule */
#ifndef BEYOND_GROWN_FROM
#define BEYOND_GROWN_FROM	(n >= grown_from[me])
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
		:: HAS_LSN(n) && (BEHIND || !GROWS) -> lsn = NOW
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
		atomic { EACH(WRITE) }
#endif
	:: lsn == 0
	fi
}

#define MAY(n)		(WRITERS == 1 || me == (n))
#define LEAVE(n)	mine[n] = 0
#define APPENDS(n)	(SIZE == (n))

#define LOG(n)		if :: logs & (1 << (n)) -> mine[n] = ins + 1 :: else fi

/* log_pages */
inline publish_logged()
{
	/* RULE PUBLISH_LOGGED log_pages (hooks.c): ptrack_publish_logged is not called */
#ifndef NO_PUBLISH_LOGGED
	logged[me] = logs;
	left = logs
#else
	skip
#endif
}

inline written()
{
	if
	:: left != 0 ->
		left = left & (((1 << from[me]) - 1) | ~((1 << to[me]) - 1));
		/* RULE LOGGED_UNTIL written (map.c): the entry is taken back with the first block */
#ifdef NO_LOGGED_UNTIL
		left = 0;
#endif
		if :: left == 0 -> logged[me] = 0 :: else fi
	:: else
	fi
}

/*
 * A backup that begins now, behind the page's WAL, may copy it when it has
 * been written.  So it has to be told of it, whatever older backup it asks for.
 * Whether the page is in the file by now is not asked: expect_logged.
 */
#define PENDING(n)	(told && HAS_LSN(n) && mine[n] - 1 < control_redo)
#define ASKED(n, reported)	(PENDING(n) && since != 0 && since < control_redo && !(PUBLISHED(n) || page[n] != GONE && (reported)))

proctype Writer(byte me)
{
	byte mine[PAGES];		/* what to write */
	byte logs;				/* what to log before, as "record" has it */
	bool told;				/* and to publish before that */
	byte left;				/* what of that has not been written yet */
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
			:: MAY(0) -> logs = 1
			:: MAY(1) -> logs = 2
#if PAGES == 3
			:: MAY(2) -> logs = 4
			:: MAY(2) -> logs = 5
			:: MAY(2) -> logs = 6
			:: MAY(2) && APPENDS(2) -> mine[2] = ZEROS
			:: MAY(2) && APPENDS(2) -> mine[2] = BARE
#endif
			:: WRITERS == 1 -> logs = 3
			:: MAY(0) && APPENDS(0) -> mine[0] = ZEROS
			:: MAY(1) && APPENDS(1) -> mine[1] = ZEROS
			:: MAY(0) && APPENDS(0) -> mine[0] = BARE
			:: MAY(1) && APPENDS(1) -> mine[1] = BARE
			fi;
			/* RULE LOGGED_FIRST log_newpages (log_pages_hook): the hook is called when the record has been inserted */
#ifndef NO_LOGGED_FIRST
			if :: logs != 0 -> told = true; publish_logged() :: skip fi
#endif
		};
		{
			if
			:: atomic {
					logs != 0 -> record[ins] = logs;
					EACH(LOG);
					ins++;
#ifndef NO_LOGGED_FIRST
					logs = 0
				}
#else
				};
				atomic { told = true; publish_logged(); logs = 0 }
#endif
			:: logs == 0
			fi;
			do
			:: atomic { n < PAGES && ASKED(0, REPORTED_0) -> lost(true) }
			:: atomic { n < PAGES && ASKED(1, REPORTED_1) -> lost(true) }
#if PAGES == 3
			:: atomic { n < PAGES && ASKED(2, REPORTED_2) -> lost(true) }
#endif
			:: atomic { n < PAGES && mine[n] == 0 -> n++ }
			:: n < PAGES && mine[n] != 0 ->
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
					from[me] = (page[n] == GONE -> SIZE : n);
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
					fill_up(0, n);
#if PAGES == 3
					fill_up(1, n);
#endif
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
					written();
					from[me] = 0; to[me] = 0;
					if :: mine[n] != BARE -> mine[n] = 0; n++ :: else fi
				};
				if
				:: atomic { n < PAGES && mine[n] == BARE -> record[ins] = 1 << n; ins++; mine[n] = 0; n++ }
				:: n == PAGES || mine[n] != BARE
				fi
			/* the end of the transaction: ptrack_unpublish_logged */
			:: atomic {
					n == PAGES -> n = 0;
					lsn = NOW; mark_logged(logged[me], lsn); lsn = 0;
					logged[me] = 0; left = 0; told = false;
					END; break
				}
			od
		} CRASHED(EACH(LEAVE); logs = 0; told = false; left = 0; n = 0; lsn = 0)
	od
}

inline redo_page(n)
{
	if
	:: record[replaying] & (1 << n) ->
		if :: page[n] == GONE -> mark(SIZE, n, replaying) :: else fi;
		fill_up(0, n);
#if PAGES == 3
		fill_up(1, n);
#endif
		put(n, replaying + 1); mark(n, n + 1, replaying)
	:: else
	fi
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
			EACH(READ);
			replayed = true;
			replaying = control_redo
		};
		{
			do
			:: atomic {
					replaying < ins ->
					EACH(redo_page);
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
					EACH(WRITE); file_redo = redo; missed = false
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
#if PAGES == 3
		:: page[0] = OLD; page[1] = OLD; page[2] = OLD
#endif
		fi;
		run Writer(0);
#if WRITERS == 2
		run Writer(1);
#endif
		run Checkpointer(); run Startup(); run Crash(); run Backup(); run Query()
	}
}
