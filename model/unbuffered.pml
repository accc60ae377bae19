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
#ifndef CHECKPOINTS
#define CHECKPOINTS 2
#endif
#define POSITIONS 10		/* of WAL */

byte ins = 1;
byte durable = 1;
byte logged[POSITIONS];	/* what the record says of the block, or 0 */

byte disk;				/* the block */
byte file_slot;			/* the map's file: the block's mark ... */
byte file_redo = 1;		/* ... and the header */
byte control_redo = 1;

bool recovery;
byte replaying;
byte slot;				/* the map in memory */
bool published;			/* in-flight entry of the one that changes the block */
byte flush_redo;
bool file_lock;			/* ptrack_shared->lock */

byte writes;
byte crashes;
byte checkpoints;

byte since;				/* the backup: L ... */
bool copied;
byte copy;				/* ... and its copy of the block */

#define NOW		(recovery -> replaying : ins)

inline forget(from, to)
{
	i = from;
	do :: i < to -> logged[i] = 0; i++ :: else -> break od;
	i = 0
}

inline sample(x)
{
#ifdef NO_SAMPLE_LATE
	x = sampled
#else
	x = NOW
#endif
}

/* mark_durably; "cached" is the process's own durable_redo, 0 for none */
inline mark_durably()
{
	looked = flush_redo;
	if
	/* RULE CACHE mark_durably (hooks.c): durable_redo is not compared with flush_redo */
#ifdef NO_CACHE
	:: cached != 0 -> skip
	:: cached == 0 ->
#else
	:: cached == looked + 1 -> skip
	:: cached != looked + 1 ->
#endif
		sample(lsn);
		atomic { RAISE(slot, lsn); lsn = 0 };
		/* RULE WRITE_THROUGH mark_durably (hooks.c): ptrack_file_write_through is not called */
#ifndef NO_WRITE_THROUGH
		atomic { !file_lock -> file_lock = true };
		atomic { file_slot = slot; file_lock = false };
#endif
		cached = looked + 1
	fi;
	looked = 0
}

/* what has been logged may become durable at any time */
proctype WalWriter()
{
end:
	do
	:: atomic { !down && !recovery && durable < ins -> durable = ins }
	od
}

/* ptrack_file_flush and what is around it */
inline checkpoint()
{
	/* RULE FLUSH_REDO_FIRST ptrack_file_flush (mapflush.c): flush_redo is set after ptrack_mark_published */
#ifndef NO_FLUSH_REDO_FIRST
	flush_redo = redo;
#endif
	/* RULE FLUSH_IN_FLIGHT ptrack_file_flush (mapflush.c): ptrack_mark_published is not called */
#ifndef NO_FLUSH_IN_FLIGHT
	seen = published;
	if
	:: seen -> lsn = NOW; atomic { RAISE(slot, lsn); lsn = 0; seen = false }
	:: !seen
	fi;
#endif
#ifdef NO_FLUSH_REDO_FIRST
	flush_redo = redo;
#endif
	atomic { !file_lock -> file_lock = true };
	file_slot = slot;
	atomic { RAISE(durable, redo); file_redo = redo; file_lock = false };
	atomic { ins++; durable = ins; forget(control_redo, redo); control_redo = redo; redo = 0 }
}

proctype Checkpointer()
{
	byte lsn;
	byte redo;
	byte i;
	bool seen;

end:
	do
	:: BEGIN(!recovery && checkpoints < CHECKPOINTS)
			checkpoints++;
			redo = ins
		};
		{
			checkpoint();
			END
		} CRASHED(lsn = 0; redo = 0; seen = false)
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
			slot = 0; published = false; flush_redo = 0; file_lock = false;
			forget(durable, ins);
			ins = durable
		}
	od
}

/*
 * The greater the LSN asked for, the less is reported: so a backup that copies
 * the block starts at the latest redo point there can be then.
 */
proctype Backup()
{
	atomic { !recovery && !down -> since = control_redo; copy = disk; copied = true }
}

proctype Query()
{
	bool reported;

end:
	do
	/* the block has changed: it must be in the answer, and is not in the map yet */
	:: BEGIN(copied && !recovery && disk != copy && slot < since) skip };
		{
			reported = published;
			atomic {
				reported = reported || slot >= since;
				lost(!reported);
				reported = false;
				END
			}
		} CRASHED(reported = false)
	od
}

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
