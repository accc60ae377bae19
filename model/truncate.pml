/*
 * truncate.pml
 *	  Truncation, and growing again by zeros.
 *
 * The file ends with one block that can be cut off, and that comes back as
 * zeros.  Truncation is logged before it happens, growing by zeros is not
 * logged at all.  A crash loses what is in memory; redo of the truncation
 * calls no hook if the block is not there any more.  Checkpoints do not wait
 * for a truncation that is under way (late minors have them wait).
 *
 * A client takes the present size of the file; what it lacks is zeros.
 */
#include "common.pml"

#ifndef CRASHES
#define CRASHES 3
#endif
#ifndef CHANGES
#define CHANGES 3
#endif

#define GONE 0			/* the file is shorter */
#define DATA 1
#define ZEROS 2

#define BEFORE DATA
#define CHANGED (disk != copy && disk != GONE && !(copy == GONE && disk == ZEROS))
#include "server.pml"

byte changes;

/* mdtruncate */
inline truncate(durably)
{
	/* RULE MARK_TRUNCATION mdtruncate (change_begin_hook): the hook is not called */
#ifndef NO_MARK_TRUNCATION
	published = true;
	if
	:: durably -> mark_durably()
	:: else
	fi;
#endif
	disk = GONE;
#ifndef NO_MARK_TRUNCATION
	lsn = NOW;
	atomic { RAISE(slot, lsn); lsn = 0 };
	published = false
#endif
}

proctype Backend()
{
	byte lsn;
	byte cached;
	byte looked;
	bool cut;

end:
	do
	:: BEGIN(!recovery && changes < CHANGES)
			changes++;
			if
			:: disk == GONE
			:: disk != GONE ->
				cut = true;
				logged[ins] = true;
				ins++
			fi
		};
		{
			if
			:: cut ->
				/* RULE DURABLE_TRUNCATION needs_durable_mark (hooks.c): false for CHANGE_TRUNCATE */
#ifdef NO_DURABLE_TRUNCATION
				truncate(false)
#else
				truncate(true)
#endif
			:: !cut ->
				/* mdzeroextend */
				published = true;
				disk = ZEROS;
				lsn = NOW;
				atomic { RAISE(slot, lsn); lsn = 0 };
				published = false
			fi;
			atomic { cut = false; END }
		} CRASHED(lsn = 0; cached = 0; looked = 0; cut = false)
	od
}

proctype Startup()
{
	byte lsn;
	byte redo;
	byte i;
	byte cached;
	byte looked;
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
			:: replaying < ins && (!logged[replaying] || disk == GONE) -> replaying++
			:: replaying < ins && logged[replaying] && disk != GONE ->
				/* RULE DURABLE_REDO needs_durable_mark (hooks.c): false for CHANGE_TRUNCATE in recovery */
#ifdef NO_DURABLE_REDO
				truncate(false);
#else
				truncate(true);
#endif
				replaying++
			:: replaying == ins -> break
			od;
			redo = ins;
			checkpoint();
			atomic { recovery = false; replaying = 0; END }
		} CRASHED(lsn = 0; redo = 0; seen = false; cached = 0; looked = 0)
	od
}

init
{
	atomic {
		run Backend(); run WalWriter(); run Checkpointer(); run Startup(); run Crash();
		run Backup(); run Query()
	}
}
