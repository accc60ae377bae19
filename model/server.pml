/*
 * server.pml
 *	  The server around a change that no checkpoint waits for: checkpoints,
 *	  crashes, a backup and queries; and mark_durably.
 *
 * Included by unbuffered.pml and truncate.pml, which define
 *
 *		BEFORE	what the block holds in the beginning
 *		CHANGED	whether a client that has "copy" must be told of the block
 *
 * The end-of-recovery checkpoint is the startup process's, which is theirs.
 */
#ifndef CHECKPOINTS
#define CHECKPOINTS 2
#endif
#define POSITIONS 10		/* of WAL */

byte ins = 1;
byte durable = 1;
byte logged[POSITIONS];	/* what the record says of the block, or 0 */

byte disk = BEFORE;	/* the block */
byte file_slot;			/* the map's file: the block's mark ... */
byte file_redo = 1;		/* ... and the header */
byte control_redo = 1;

bool recovery;
byte replaying;
byte slot;				/* the map in memory */
bool published;			/* in-flight entry of the one that changes the block */
byte flush_redo;
bool file_lock;			/* ptrack_shared->lock */

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
	:: BEGIN(copied && !recovery && CHANGED && slot < since) skip };
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
