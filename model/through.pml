/*
 * through.pml
 *	  A durable mark: write-through, errors in it, and a page of the map lost later.
 *
 * A process changes two blocks past the buffer pool, whose marks are in two
 * pages of the map.  The first page is in use when it begins, and the header
 * counts it.  A write, an fsync and the removal of the file may fail.  The WAL
 * of the changes lies before the redo point, so that no replay comes to them.
 *
 * A page of a file that is at rest, its pages as its header counts them, may
 * turn into zeros.
 */
#include "common.pml"

#ifndef CHANGES
#define CHANGES 4
#endif
#ifndef ERRORS
#define ERRORS 3
#endif

bool slot[2];			/* marks since the backup, in memory */
bool marked[2];			/* in the file */
bool in_use[2];			/* pages with marks, of whatever age */
byte used = 1;			/* pages in use, as the header has it ... */
byte shared_used = 1;	/* ... and in memory */
bool file = true;
bool changed[2];		/* blocks on disk */
bool writing;			/* the file is not what its header says */
byte errors;
byte changes;

/* a step that may go wrong */
inline fails()
{
	if
	:: skip
	:: atomic { errors < ERRORS -> errors++; failed = true }
	fi
}

/* ptrack_file_write_through; write_in_place or write_new_file, what matters is the same here */
inline write_through()
{
	if
	:: file ->
		writing = true;
		before = shared_used;
		fails();
		if
		:: !failed -> atomic {
				marked[n] = slot[n];
				if :: !in_use[n] -> in_use[n] = true; shared_used++ :: else fi
			}
		:: failed
		fi;
		/* RULE COUNT write_in_place (mapflush.c): the header is not written for pages that come into use */
#ifndef NO_COUNT
		/* RULE COUNT_ALL write_in_place (mapflush.c): used is compared with what it was before, not with header_used */
#ifdef NO_COUNT_ALL
#define COUNTED (shared_used == before)
#else
#define COUNTED (shared_used == used)
#endif
		if :: !failed && !COUNTED -> fails() :: else fi;
		if :: !failed && !COUNTED -> used = shared_used :: else fi;
#endif
		if :: !failed -> fails() :: failed fi;		/* fsync */
		if :: !failed -> writing = false :: failed fi;
		/* RULE DELETE ptrack_file_write_through (mapflush.c): a file that could not be written stays */
#ifdef NO_DELETE
		failed = false
#else
		if
		:: failed ->
			failed = false;
			fails();
			if :: !failed -> file = false :: failed fi
		:: !failed
		fi
#endif
	:: !file
	fi;
	/* RULE DELETE_OR_ERROR ptrack_file_write_through (mapflush.c): no ERROR where the file could not be removed */
#ifdef NO_DELETE_OR_ERROR
	failed = false;
#endif
	before = 0
}

proctype Writer()
{
	bool noted[2];		/* mark_durably's "durable" */
	bool failed;
	byte before;
	byte n;

end:
	do
	:: BEGIN(changes < CHANGES)
			changes++;
			if :: n = 0 :: n = 1 fi
		};
		{
			if
			:: noted[n]
			:: !noted[n] ->
				slot[n] = true;
				/* RULE NOTE_AFTER mark_durably (hooks.c): the range counts as durable before ptrack_file_write_through */
#ifdef NO_NOTE_AFTER
				noted[n] = true;
#endif
				write_through();
				if :: !failed -> noted[n] = true :: failed fi
			fi;
			if
			:: !failed -> changed[n] = true
			:: failed		/* an ERROR before the change */
			fi;
			atomic { failed = false; n = 0; END }
		} CRASHED(failed = false; before = 0; n = 0; noted[0] = false; noted[1] = false)
	od
}

/* the file is loaded; found: pages with marks */
proctype Crash()
{
	byte n;
	byte found;

	down = true;
	atomic {
		busy == 0 ->
		slot[0] = false; slot[1] = false;
		found = in_use[0] + in_use[1];
		if
		:: !writing ->
			if :: n = 0 :: n = 1 fi;
			if :: in_use[n] -> in_use[n] = false; marked[n] = false; found-- :: else fi
		:: skip
		fi;
		if
		:: file && found >= used ->
			lost(changed[0] && !marked[0]);
			lost(changed[1] && !marked[1])
		:: else
		fi
	}
}

init
{
	atomic { in_use[0] = true; run Writer(); run Crash() }
}
