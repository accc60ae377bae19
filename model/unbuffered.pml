/*
 * unbuffered.pml
 *	  A page written past the buffer pool: no checkpoint waits for it.
 *
 * A process logs a page with its full image and then writes it, as index
 * builds and bulk writes do, and does so again.  It may stop for any time
 * between its steps, while checkpoints, a backup's start and copy, and queries
 * go by.  Its WAL need not be durable when the page is written.  The server
 * may crash between any two steps, also in recovery.
 */
#include "common.pml"

#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef WRITES
#define WRITES 2
#endif

#define BEFORE 0
#define CHANGED (disk != copy)
#include "server.pml"

byte writes;

proctype Writer()
{
	byte mine;				/* contents to write */
	byte lsn;
	byte cached;
	byte looked;
#ifdef NO_SAMPLE_LATE
	byte sampled;
#endif

end:
	do
	:: BEGIN(!recovery && writes < WRITES)
			writes++;
			mine = writes;
			logged[ins] = mine;
			ins++
		};
		{
			/* RULE SAMPLE_LATE ptrack_unpublish (map.c): the LSN is sampled before ptrack_publish */
#ifdef NO_SAMPLE_LATE
			sampled = NOW;
#endif
			/* RULE PUBLISH_BEFORE_LOOK change_begin (hooks.c): ptrack_publish is called after mark_durably */
#ifdef NO_PUBLISH_BEFORE_LOOK
			mark_durably();
#endif
			published = true;
			/* RULE DURABLE_FIRST change_begin (hooks.c): mark_durably is called by change_end */
#if !defined(NO_PUBLISH_BEFORE_LOOK) && !defined(NO_DURABLE_FIRST)
			mark_durably();
#endif
			disk = mine;
#ifdef NO_DURABLE_FIRST
			mark_durably();
#endif
			sample(lsn);
			atomic { RAISE(slot, lsn); lsn = 0 };
			atomic { published = false; mine = 0; END }
		} CRASHED(lsn = 0; mine = 0; cached = 0; looked = 0)
	od
}

proctype Startup()
{
	byte lsn;
	byte redo;
	byte i;
	bool seen;

end:
	do
	:: atomic {
			down && busy == 0 -> down = false;
			busy++;
			refused(file_redo < control_redo);
			slot = file_slot;
			replaying = control_redo
		};
		{
			do
			:: replaying < ins && logged[replaying] == 0 -> replaying++
			:: replaying < ins && logged[replaying] != 0 ->
				published = true;
				disk = logged[replaying];
				lsn = NOW;
				atomic { RAISE(slot, lsn); lsn = 0 };
				atomic { published = false; replaying++ }
			:: replaying == ins -> break
			od;
			redo = ins;
			checkpoint();
			atomic { recovery = false; replaying = 0; END }
		} CRASHED(lsn = 0; redo = 0; seen = false)
	od
}

init
{
	atomic {
		run Writer(); run WalWriter(); run Checkpointer(); run Startup(); run Crash();
		run Backup(); run Query()
	}
}
