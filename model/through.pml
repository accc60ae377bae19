/*
 * through.pml
 *	  A durable mark: write-through, errors in it, and a page of the map lost later.
 *
 * Two blocks are changed, again and again, with durable marks, which are in
 * two pages of the map.  The first page is in use when it begins, and the
 * header counts it.  The WAL of the changes lies before the redo point, so
 * that no replay comes to them.  Checkpoints flush the map.  A write, an fsync
 * and the removal of the file may fail.  The server may be killed between any
 * two steps; the next start takes the file over, and reads a page at a time.
 *
 * While the server is down, a page of a file that was at rest may turn into
 * zeros: one whose pages are as its header should count them.  The server is
 * not killed within a write until that can have been found: docs/model.md,
 * Limits.
 *
 * The file is changed under a lock, so that one process takes all steps.
 */
#include "common.pml"

#ifndef CHANGES
#define CHANGES 3
#endif
#ifndef FLUSHES
#define FLUSHES 2
#endif
#ifndef ERRORS
#define ERRORS 2
#endif
#ifndef CRASHES
#define CRASHES 2
#endif

/* the file */
bool file = true;
bool marked[2];			/* marks since the backup */
bool in_use[2];			/* pages with marks, of whatever age */
byte header = 1;		/* pages in use, as the header has it */
bool stale;				/* pg_control is ahead of the header */
bool working;			/* the file is not at rest */
bool gone;				/* a page is lost */

/* memory */
bool slot[2];
bool has_marks[2];
bool dirty[2];
bool unread[2];
bool used_page[2];		/* PAGE_USED */
byte used = 1;
byte header_used = 1;
byte file_used;
byte found;
bool in_place = true;
bool anew;				/* begun anew, and not asked any more */

bool changed[2];		/* blocks on disk */
byte changes;
byte flushes;
byte errors;
byte crashes;

#define UNREAD	(unread[0] || unread[1])

/* a step that may go wrong */
inline fails()
{
	if
	:: skip
	:: atomic { errors < ERRORS -> errors++; failed = true }
	fi
}

/* ptrack_read_pages */
inline read_page(i)
{
	atomic {
		if
		:: unread[i] ->
			unread[i] = false;
			if
			:: in_use[i] ->
				found++; used_page[i] = true; has_marks[i] = true;
				if :: marked[i] -> slot[i] = true :: else fi
			:: else
			fi;
			if
			:: !UNREAD && found < file_used -> anew = true
			:: !UNREAD && found >= file_used -> used = used + found - file_used
			:: else
			fi
		:: else
		fi
	}
}

/* the header, stamped or not */
inline write_header()
{
	fails();
	if
	:: atomic { !failed -> header = used; header_used = used }
	:: failed -> in_place = false
	fi
}

inline write_page(i)
{
	if
	:: !failed && dirty[i] ->
		read_page(i);
		fails();
		if
		:: failed
		:: atomic {
				!failed -> marked[i] = slot[i]; in_use[i] = true; dirty[i] = false;
				if :: !used_page[i] -> used_page[i] = true; used++ :: else fi
			}
		fi
	:: else
	fi
}

/* write_pages and durable_rename for a new file: it is there when they have ended */
inline write_anew(i)
{
	marked[i] = slot[i]; in_use[i] = has_marks[i]; used_page[i] = has_marks[i]; dirty[i] = false;
	used = used + has_marks[i]
}

/* write_file */
inline write_file(stamp)
{
	was_working = working;
	if
	:: in_place ->
		working = true;
#ifdef NO_COUNT_HEADER
		before = used;
#endif
		write_page(0); write_page(1);
		/* RULE COUNT write_in_place (mapflush.c): the header is not written for pages that come into use */
#ifndef NO_COUNT
		/* RULE COUNT_HEADER write_in_place (mapflush.c): used is compared with what it was before, not with header_used */
#ifdef NO_COUNT_HEADER
#define COUNTED (used == before)
#else
#define COUNTED (used == header_used)
#endif
		if :: !failed && !stamp && !COUNTED -> write_header() :: else fi;
#endif
		if
		:: !failed ->
			fails();		/* fsync */
			if :: failed -> in_place = false :: !failed fi
		:: failed
		fi;
		if :: !failed && stamp -> write_header() :: else fi;
		if :: !failed -> working = was_working && UNREAD :: failed fi
	:: !in_place && (file || stamp) ->
		read_page(0); read_page(1);
		fails();
		if
		:: atomic {
				!failed -> used = 0;
				write_anew(0); write_anew(1);
				header = used; header_used = used;
				file = true; in_place = true; working = false
			}
		:: failed
		fi
	:: else
	fi;
	was_working = false
}

/* ptrack_file_write_through */
inline write_through()
{
	write_file(false);
	/* RULE DELETE write_through (mapflush.c): a file that could not be written stays */
#ifdef NO_DELETE
	failed = false;
#else
	if
	:: failed ->
		failed = false;
		fails();
		if :: atomic { !failed -> file = false; in_place = false } :: failed fi
	:: !failed
	fi;
#endif
	/* RULE DELETE_OR_ERROR write_through (mapflush.c): no ERROR where the file could not be removed */
#ifdef NO_DELETE_OR_ERROR
	failed = false
#else
	skip
#endif
}

proctype Server()
{
	bool failed;
	bool was_working;
	byte n;
#ifdef NO_COUNT_HEADER
	byte before;
#endif

end:
	do
	:: BEGIN(!anew && changes < CHANGES)
			changes++;
			if :: n = 0 :: n = 1 fi;
			slot[n] = true; has_marks[n] = true; dirty[n] = true
		};
		{
			write_through();
			if
			:: !failed -> changed[n] = true
			:: failed		/* an ERROR before the change */
			fi;
			atomic { failed = false; n = 0; END }
		} CRASHED(failed = false; was_working = false; n = 0)

	/* the checkpoint goes on, whether the flush went well or not */
	:: BEGIN(!anew && flushes < FLUSHES)
			flushes++
		};
		{
			write_file(true);
			atomic { stale = failed; failed = false; END }
		} CRASHED(failed = false; was_working = false)

	/* ptrack_read_next, for the loader or a query */
	:: BEGIN(!anew && UNREAD)
			skip
		};
		{
			if
			:: unread[0] -> read_page(0)
			:: !unread[0] -> read_page(1)
			fi;
			/* RULE COUNT_ALL ptrack_read_next (mapload.c): the header's count is not brought up to date */
			if
#ifndef NO_COUNT_ALL
			:: !UNREAD && !anew && in_place && used != header_used -> write_header()
#endif
			:: else
			fi;
			if :: !UNREAD && !failed && in_place -> working = false :: else fi;
			atomic { failed = false; END }
		} CRASHED(failed = false; was_working = false)
	od
}

proctype Query()
{
	byte i;

end:
	do
	:: atomic {
			!down && !anew && !UNREAD ->
			lost(changed[0] && !slot[0]);
			lost(changed[1] && !slot[1])
		}
	od
}

proctype Crash()
{
	byte n;

end:
	do
	:: atomic { !down && crashes < CRASHES && !(gone && working) -> crashes++; down = true }
	:: atomic {
			down && busy == 0 && file && !stale ->
			if
			:: !working ->
				if :: n = 0 :: n = 1 fi;
				if :: in_use[n] -> in_use[n] = false; marked[n] = false; gone = true :: else fi;
				n = 0
			:: skip
			fi;
			slot[0] = false; slot[1] = false; has_marks[0] = false; has_marks[1] = false;
			dirty[0] = false; dirty[1] = false; used_page[0] = false; used_page[1] = false;
			unread[0] = true; unread[1] = true;
			used = header; header_used = header; file_used = header;
			found = 0; in_place = true; down = false
		}
	od
}

init
{
	atomic {
		in_use[0] = true; has_marks[0] = true; used_page[0] = true;
		run Server(); run Query(); run Crash()
	}
}
