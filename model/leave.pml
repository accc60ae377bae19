/*
 * leave.pml
 *	  Files of a database that moves, from their last mark until they are gone.
 *
 * A process marks what is in a directory, durably, and removes it some time
 * after, in another transaction; or it makes the copy, and removes that when
 * it fails.  Checkpoints, and a backup that copies the
 * directory, come at any time.  Once it has gone a file of the same name may
 * come, shorter, that grows by zeros, which no WAL describes: a crash takes
 * that mark.  A crash before the removal leaves the directory for good.
 *
 * Nothing has a checkpoint happen between the marks and the removal here.  The
 * server forces one; replay does not.
 */
#include "common.pml"

#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 3
#endif

#define GONE 0
#define DATA 1
#define ZEROS 2			/* another file, grown to this block */

byte ins = 2;
byte control_redo = 1;
byte disk = DATA;
bool fresh;				/* the directory is the copy */
bool removed;
bool leaving;			/* ptrack_set_leaving */
byte slot;				/* in memory */
byte file_slot;

byte crashes;
byte checkpoints;

byte since;				/* the backup: L ... */
bool copied;
byte copy;				/* ... and its copy */

/* movedb, with copydir_changed and xact_end in it */
proctype Mover()
{
	byte lsn;

	BEGIN(true) skip };
	{
		/* RULE NAME_COPY copydir_changed (hooks.c): ptrack_set_leaving is not told of the copy */
		/* RULE SET_FIRST copydir_changed (hooks.c): ptrack_set_leaving is called after ptrack_file_write_through */
#ifdef NO_NAME_COPY
		leaving = !fresh;
#elif !defined(NO_SET_FIRST)
		leaving = true;
#endif
		/* RULE MARK_LEFT copydir_changed (hooks.c): mark_directory is not called for the old place */
#ifndef NO_MARK_LEFT
		lsn = ins;
		atomic { RAISE(slot, lsn); lsn = 0 };
		file_slot = slot;
#endif
#ifdef NO_SET_FIRST
		leaving = true;
#endif
		if
		:: fresh ->
			disk = DATA;
			if
			:: disk = GONE; removed = true	/* an error */
			:: ins++
			fi;
			leaving = false
		:: !fresh ->
			ins++;			/* the copy's record, and the end of its transaction */
			/* RULE UNTIL_GONE xact_end (hooks.c): the entry is cleared although the directory is there */
#ifdef NO_UNTIL_GONE
			leaving = false;
#endif
			disk = GONE; removed = true;	/* rmtree, in the next one */
			leaving = false
		:: !fresh -> leaving = false	/* an error: the copy is removed, the database stays */
		fi;
		END
	} CRASHED(lsn = 0)
}

/* checkpoint_guts and what is around it */
proctype Checkpointer()
{
	byte redo;
	byte lsn;
	bool seen;

end:
	do
	:: BEGIN(checkpoints < CHECKPOINTS) checkpoints++; redo = ins };
		{
#ifdef NO_BEFORE_FLUSH
			file_slot = slot;
#endif
			/* RULE MARK_LEAVING checkpoint_guts (hooks.c): mark_leaving is not called */
			/* RULE BEFORE_FLUSH checkpoint_guts (hooks.c): mark_leaving is called after ptrack_file_flush */
#ifndef NO_MARK_LEAVING
			seen = leaving;
			if
			:: atomic { seen && (fresh || disk == DATA) -> lsn = ins };	/* relfile_list */
				atomic { RAISE(slot, lsn); lsn = 0 }
			:: else
			fi;
#endif
#ifndef NO_BEFORE_FLUSH
			file_slot = slot;
#endif
			atomic { ins++; control_redo = redo; redo = 0; seen = false; END }
		} CRASHED(redo = 0; lsn = 0; seen = false)
	od
}

/* a file comes where the old one was, and grows by zeros */
proctype Grow()
{
end:
	do
	:: atomic { !down && disk == GONE && removed -> disk = ZEROS; RAISE(slot, ins) }
	od
}

/* and what a restart does: the map is taken over */
proctype Crash()
{
end:
	do
	:: atomic {
			!down && crashes < CRASHES -> crashes++;
			down = true; leaving = false; slot = 0
		}
	:: atomic {
			down && busy == 0 -> down = false;
			slot = file_slot;
			ins++;			/* a checkpoint's record */
			control_redo = ins - 1
		}
	od
}

proctype Backup()
{
	/* it begins with the last checkpoint that is complete, and takes its time */
	atomic { !down -> since = control_redo };
	atomic { copy = disk; copied = true }
}

proctype Query()
{
end:
	do
	:: atomic {
			!down && copied ->
			lost(copy == DATA && disk == ZEROS && slot < since)
		}
	od
}

init
{
	atomic {
		if :: skip :: fresh = true; disk = GONE fi;
		run Mover(); run Checkpointer(); run Grow(); run Crash(); run Backup(); run Query()
	}
}
