/*
 * buffered.pml
 *	  A page of the buffer pool: WAL, write, mark, flush, crash, replay, query.
 *
 * A backend changes one page twice, by logged changes and by hint bits (with
 * checksums: logged if the page's LSN is not beyond the redo point).  Each
 * record has a full-page image or not, as it comes: full_page_writes may be
 * switched at any time.  The page is written by anybody at any time, also in
 * recovery, and by the checkpoints; each step of the write is one of its own.
 * A backup starts at the redo point of the last checkpoint, at any time after
 * that is complete, and copies the page at any time after that.  Queries come at any time after that.  The server may crash between
 * any two steps, also in recovery, and loses the WAL that is not durable.
 *
 * Another backup has begun with the first redo point.  Where it has not ended,
 * what comes after the first crash has its backup_label, and replays from there:
 * the same cluster (an exclusive backup), or what has been copied by then, and
 * is restored.  That has the map's file as it was at first, and pg_control and
 * the page as they are in the end.  A server without the library may begin that
 * replay, and be killed in it.
 *
 * LSNs in the map are twice a position, so that the end of a record (odd, if
 * the next record begins behind a WAL page's header) can be told from the
 * beginning of the next.
 */
#include "common.pml"

#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 2
#endif
#define POSITIONS 10		/* of WAL */
#define FIRST 1				/* redo point */

mtype = { nothing, change, hint };

/* WAL, of which a crash keeps what lies before "durable" */
byte ins = FIRST;
byte durable = FIRST;
mtype kind[POSITIONS] = nothing;
bool image[POSITIONS];
byte logged[POSITIONS];	/* what the page holds after the record */
#define PAGE_START 1	/* this position lies behind a WAL page's header */

/* on disk */
byte disk;				/* the page: contents ... */
byte disk_lsn;			/* ... and the last record in it */
byte file_slot;			/* the map's file: the block's mark ... */
byte file_redo = FIRST;		/* ... and the header */
byte control_redo = FIRST;	/* pg_control */
byte file_known;		/* the header's known_redo, where it is above file_redo */
byte label = FIRST;		/* backup_label's, or 0 */
bool begun;				/* that replay has begun without the library */

/* in memory */
bool library = true;
bool anew;				/* the map has been refused: it is not asked any more */
bool recovery;
bool consistent;		/* recovery answers queries: a standby */
byte replaying;			/* the record that is being replayed */
byte known;				/* known_redo, of a start that replays */
byte redo_ptr = FIRST;		/* RedoRecPtr */
bool in_pool;
byte pool;
byte pool_lsn;
bool dirty;
bool page_lock;			/* content lock and BM_IO_IN_PROGRESS in one */
byte slot;				/* the map */
bool published;			/* in-flight entry of whoever writes the page */

byte contents;			/* how many there have been: each is another */
byte crashes;
byte changes;
byte checkpoints;

/* the backup */
byte since;				/* its redo point, L */
bool copied;
byte copy;

/* ptrack_now, as LSN of the map */
inline now(lsn)
{
	if
	:: !recovery -> lsn = 2 * ins
	:: recovery ->
		/* RULE REPLAY_POSITION ptrack_now (map.c): GetXLogReplayRecPtr as it is */
#ifdef NO_REPLAY_POSITION
		lsn = 2 * replaying - (replaying == PAGE_START -> 1 : 0)
#else
		lsn = 2 * replaying;
		/* RULE KNOWN_REDO ptrack_now (map.c): lsn is not compared with known_redo */
#ifndef NO_KNOWN_REDO
		RAISE(lsn, 2 * known)
#endif
#endif
	fi
}

/* FlushBuffer and, within it, mdwritev with its hooks; who comes in has the page's lock */
inline write_page()
{
	/* RULE PUBLISH_FIRST change_begin (hooks.c): ptrack_publish is called after the write */
#ifndef NO_PUBLISH_FIRST
	published = true;
#endif
	atomic { disk = pool; disk_lsn = pool_lsn };
#ifdef NO_PUBLISH_FIRST
	published = true;
#endif
	/* RULE MARK_BEFORE_CLEAR ptrack_unpublish (map.c): the entry is cleared before the mark */
#ifdef NO_MARK_BEFORE_CLEAR
	published = false;
#endif
	now(lsn);
	atomic { RAISE(slot, lsn); lsn = 0 }
}

/* WAL first */
#define LOCK_DIRTY_PAGE	page_lock = true; RAISE(durable, pool_lsn + 1)
#define UNLOCK_CLEAN_PAGE	published = false; dirty = false; page_lock = false

/* BufferSync: write the page if it is dirty, or wait for whoever does */
inline write_buffers()
{
	if
	:: atomic { !page_lock && !dirty }
	:: atomic { !page_lock && dirty -> LOCK_DIRTY_PAGE };
		write_page();
		atomic { UNLOCK_CLEAN_PAGE }
	fi
}

/* ptrack_file_flush: the file is written in one piece here, flush.pml has its steps */
inline flush_map()
{
	atomic { RAISE(durable, redo); file_slot = slot };
	file_redo = redo
}

/* RULE AFTER_BUFFERS CheckPointGuts (checkpoint_guts_hook): the hook is called before CheckPointBuffers */
inline checkpoint_guts()
{
#ifdef NO_AFTER_BUFFERS
	flush_map();
#endif
	write_buffers();
#ifndef NO_AFTER_BUFFERS
	flush_map();
#endif
}

/* records that are of no use any more */
inline forget(from, to)
{
	i = from;
	do
	:: i < to -> kind[i] = nothing; image[i] = false; logged[i] = 0; i++
	:: else -> break
	od;
	i = 0
}

inline update_control()
{
	atomic {
		ins++;			/* the checkpoint's record */
		durable = ins;
		if :: label == 0 -> forget(control_redo, redo) :: else fi;
		control_redo = redo;
		redo = 0
	}
}

/*
 * One record.  XLogReadBufferForRedoExtended calls redo_block_hook for every
 * block, xlog_redo for that of a hint bit's record without image.
 */
inline redo_block()
{
	now(lsn); RAISE(slot, lsn); lsn = 0
}

inline replay()
{
	if :: !in_pool -> in_pool = true; pool = disk; pool_lsn = disk_lsn :: else fi;
	if
	:: image[replaying] ->
		/* RULE REDO_EVERY redo_block (hooks.c): called only where redo leaves the page alone */
#if !defined(NO_REDO_EVERY) && !defined(NO_REDO_BLOCK)
		redo_block();
#endif
		pool = logged[replaying]; pool_lsn = replaying; dirty = true
	:: !image[replaying] && kind[replaying] == change ->
		if
		:: pool_lsn < replaying ->
#if !defined(NO_REDO_EVERY) && !defined(NO_REDO_BLOCK)
			redo_block();
#endif
			contents++; pool = contents; pool_lsn = replaying; dirty = true
		:: pool_lsn >= replaying ->
			/* RULE REDO_BLOCK redo_block (hooks.c): nothing is marked */
#ifndef NO_REDO_BLOCK
			redo_block()
#else
			skip
#endif
		fi
	:: !image[replaying] && kind[replaying] == hint ->
		/* RULE REDO_HINT redo_block (hooks.c): xlog_redo does not call it for a hint bit's record without image */
#ifndef NO_REDO_HINT
		redo_block()
#else
		skip
#endif
	fi
}

proctype Backend()
{
end:
	do
	:: BEGIN(!recovery && !page_lock && changes < CHANGES)
			page_lock = true;
			changes++;
			if :: !in_pool -> in_pool = true; pool = disk; pool_lsn = disk_lsn :: else fi;
			/* a page is dirty before its record is inserted */
			dirty = true
		};
		{
			atomic {
				contents++;
				pool = contents;
				if
				:: kind[ins] = change
				:: pool_lsn < redo_ptr -> kind[ins] = hint
				:: pool_lsn >= redo_ptr		/* MarkBufferDirtyHint: no record */
				fi;
				if
				:: kind[ins] != nothing ->
					if :: image[ins] = true :: image[ins] = false fi;
					logged[ins] = pool;
					pool_lsn = ins;
					ins++
				:: else
				fi;
				page_lock = false;
				END
			}
		} CRASHED(skip)
	od
}

/* the background writer, or a backend that needs the buffer */
proctype Writer()
{
	byte lsn;

end:
	do
	:: BEGIN(!page_lock && dirty)
			LOCK_DIRTY_PAGE
		};
		{
			write_page();
			atomic { UNLOCK_CLEAN_PAGE; END }
		} CRASHED(lsn = 0)
	od
}

proctype Checkpointer()
{
	byte lsn;
	byte redo;
	byte i;

end:
	do
	:: BEGIN(!recovery && checkpoints < CHECKPOINTS)
			checkpoints++;
			redo = ins;
			redo_ptr = ins
		};
		{
			checkpoint_guts();
			atomic { update_control(); END }
		} CRASHED(lsn = 0; redo = 0)
	od
}

/* ptrack_file_start, and pg_control as replay begins: what it has had of the redo point is gone then */
inline start()
{
	if :: label != 0 -> replaying = label :: else -> replaying = control_redo fi;
	refused(file_redo < replaying);
	if
	:: library = true;
		/* RULE LABEL_BEGUN judge_file (mapload.c): the header's label is not compared with that of the backup whose replay has begun */
#ifndef NO_LABEL_BEGUN
		anew = begun
#endif
	:: label != 0 && crashes < CRASHES -> library = false; begun = true
	fi;
	slot = file_slot;
	/* RULE KNOWN_CONTROL ptrack_file_start (mapload.c): pg_control's redo point is not looked at where there is a backup_label */
#ifdef NO_KNOWN_CONTROL
	known = replaying;
#else
	known = control_redo;
#endif
	/* RULE KNOWN_HEADER ptrack_file_start (mapload.c): the header is not looked at */
	/* RULE KNOWN_KEPT ptrack_file_start (mapload.c): the header's known_redo is not looked at */
#ifndef NO_KNOWN_HEADER
	RAISE(known, file_redo);
#ifndef NO_KNOWN_KEPT
	RAISE(known, file_known);
#endif
#endif
	/* note_in_file */
	if :: library && known > file_redo -> file_known = known :: else fi;
	control_redo = replaying;
	label = 0
}

/* the start, replay, and the checkpoint at its end */
proctype Startup()
{
	byte lsn;
	byte redo;
	byte i;

end:
	do
	:: atomic {
			down && busy == 0 -> down = false;
			busy++;
			start()
		};
		{
			do
			:: atomic {
					replaying < ins && (kind[replaying] == nothing || !page_lock) ->
					if
					:: kind[replaying] == nothing
					:: else -> replay()
					fi
				};
				replaying++
			:: replaying == ins && library -> break
			od;
			consistent = true;
			/* the end-of-recovery checkpoint */
			atomic { redo = ins; redo_ptr = ins };
			checkpoint_guts();
			atomic {
				update_control();
				recovery = false; consistent = false; replaying = 0;
				/* the header's redo point is above it */
				known = 0; file_known = 0;
				END
			}
		} CRASHED(lsn = 0; redo = 0)
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
			consistent = false;
			replaying = 0; known = 0;
			in_pool = false; pool = 0; pool_lsn = 0; dirty = false; page_lock = false;
			slot = 0; published = false;
			/* what is left of the WAL */
			forget(durable, ins);
			ins = durable;
			if
			:: label != 0 -> file_slot = 0; file_redo = label; file_known = 0	/* restored */
			:: label != 0 -> forget(label, control_redo); label = 0			/* it had ended */
			:: true
			fi
		}
	od
}

/*
 * The greater the LSN asked for, the less is reported: so a backup that copies
 * the page starts at the latest redo point there can be then.
 */
proctype Backup()
{
	atomic { !recovery && !down -> since = 2 * control_redo; copy = disk; copied = true }
}

proctype Query()
{
	bool reported;

end:
	do
	/* the page has changed: it must be in the answer, and is not in the map yet */
	:: BEGIN(copied && library && !anew && (!recovery || consistent) && disk != copy && slot < since)
			skip
		};
		{
			/* RULE QUERY_IN_FLIGHT scan_file (query.c): in-flight ranges are not looked at */
#ifndef NO_QUERY_IN_FLIGHT
			reported = published;
#endif
			atomic {
				reported = reported || slot >= since;
				lost(!reported);
				reported = false;
				END
			}
		} CRASHED(reported = false)
	od
}

init
{
	atomic {
		run Backend(); run Writer(); run Checkpointer(); run Startup(); run Crash();
		run Backup(); run Query()
	}
}
