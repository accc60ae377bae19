/*
 * basebackup.pml
 *	  The map in a base backup that is taken while it is written, and restored.
 *
 * A cluster with the library: its block is changed in the pool (WAL), written
 * and marked; checkpoints write the pool, the map's page, the header and
 * pg_control, each a step, the map's in two halves.  A flush may fail.  An
 * older backup, the parent, has copied the block.  A base backup starts with a
 * completed checkpoint; it copies the map (header first), the block and
 * pg_control at any time, and may catch a page half-written.  It is restored
 * and replays its WAL, and the map is asked what changed since the parent.
 *
 * The block is the last of its file.  In place of being changed it may be cut
 * off, some time after the record that says so, and come again as zeros.
 *
 * What is written past the buffer pool is not here: docs/model.md has why.
 */
#include "common.pml"

#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef CHECKPOINTS
#define CHECKPOINTS 3
#endif
#define POSITIONS 8		/* of WAL */
#define NONE 254		/* not copied yet */
#define TORN 255

/* contents, beside those that are counted */
#define GONE 0
#define ZEROS 1
#define FIRST 2
#define CUT 100			/* a record that cuts the block off */

/* the cluster */
byte ins = 2;
byte logged[POSITIONS];	/* the block's contents by the record, or 0 */
bool image[POSITIONS];
byte pool = FIRST;
byte disk = FIRST;
bool cutting;
byte slot;
byte file_redo = 1;
byte file_slot;
byte control_redo = 1;

/* the checkpoint that is under way */
mtype = { idle, begun, page_half, page_whole, header_half, flushed };
mtype step = idle;
byte redo;
bool failed;			/* a flush has failed */

/* the parent */
byte since;
byte copy;

/* the base backup */
byte label;				/* START WAL LOCATION */
byte copy_redo = NONE;
byte copy_slot = NONE;
byte copy_disk = NONE;
byte copy_control = NONE;

byte changes;
byte checkpoints;

/* RULE TAIL scan_file (query.c): scan_tail is not called */
#ifdef NO_TAIL
#define TAIL	false
#else
#define TAIL	true		/* WAL has been replayed */
#endif

#define WRITE_PAGE	if :: pool != disk -> disk = pool; RAISE(slot, ins) :: else fi

inline restore()
{
	/* RULE LABEL start_of_replay (mapload.c): pg_control's redo point is taken although there is a backup_label */
#ifdef NO_LABEL
	start_redo = copy_control;
#else
	start_redo = label;
#endif
	slot = 0;
	disk = copy_disk;
	if
	/* RULE HEADER_CRC judge_file (mapload.c): the header's checksum is not compared */
#ifndef NO_HEADER_CRC
	:: copy_redo == TORN
#endif
	/* RULE STAMP judge_file (mapload.c): the header's redo point is not compared with the start's */
#ifndef NO_STAMP
	:: copy_redo < start_redo -> refused(!failed)
#endif
	/* RULE PAGE_CRC merge_page (mapload.c): a page's checksum is not compared */
#ifndef NO_PAGE_CRC
	:: copy_redo != TORN && copy_redo >= start_redo && copy_slot == TORN
#endif
	:: else ->
		if :: copy_slot != TORN -> slot = copy_slot :: else fi;
		i = label;
		do
		:: i < ins ->
			if
			:: logged[i] == 0
			:: logged[i] == CUT -> disk = GONE
			:: logged[i] != 0 && logged[i] != CUT && (image[i] || disk < logged[i]) -> disk = logged[i]; RAISE(slot, i)
			:: logged[i] != 0 && logged[i] != CUT && !image[i] && disk >= logged[i] ->
				/* RULE REDO_BLOCK redo_block (hooks.c): nothing is marked */
#ifndef NO_REDO_BLOCK
				RAISE(slot, i)
#else
				skip
#endif
			fi;
			i++
		:: else -> break
		od;
		lost(disk != copy && disk != GONE && slot < since && !(disk == ZEROS && TAIL))
	fi
}

active proctype Cluster()
{
	byte i;
	byte start_redo;

	do
	:: atomic {
			changes < CHANGES -> changes++;
			pool = FIRST + changes;
			logged[ins] = pool;
			if :: image[ins] = true :: image[ins] = false fi;
			ins++
		}
	:: atomic {
			changes == 0 -> changes = CHANGES;
			logged[ins] = CUT; ins++; cutting = true
		}
	:: atomic { cutting -> pool = GONE; disk = GONE; cutting = false }
	:: atomic { disk == GONE -> pool = ZEROS; disk = ZEROS; RAISE(slot, ins) }
	:: atomic { pool != disk -> WRITE_PAGE }

	:: atomic { step == idle && checkpoints < CHECKPOINTS -> checkpoints++; redo = ins; step = begun }
	:: atomic {
			step == begun ->
			/* RULE AFTER_BUFFERS CheckPointGuts (checkpoint_guts_hook): the hook is called before CheckPointBuffers */
#ifndef NO_AFTER_BUFFERS
			WRITE_PAGE;
#endif
			step = page_half
		}
	:: atomic { step == begun -> WRITE_PAGE; failed = true; step = flushed }
	:: atomic { step == page_half -> file_slot = slot; step = page_whole }
	:: atomic { step == page_whole -> step = header_half }
	:: atomic {
			step == header_half -> file_redo = redo;
#ifdef NO_AFTER_BUFFERS
			WRITE_PAGE;
#endif
			step = flushed
		}
	:: atomic { step == flushed -> ins++; control_redo = redo; redo = 0; step = idle }

	:: atomic { since == 0 -> since = control_redo; copy = disk }
	:: atomic { since != 0 && label == 0 -> label = control_redo }
	:: atomic {
			label != 0 && copy_redo == NONE ->
			copy_redo = (step == header_half -> TORN : file_redo)
		}
	:: atomic {
			copy_redo != NONE && copy_slot == NONE ->
			copy_slot = (step == page_half -> TORN : file_slot)
		}
	:: atomic { label != 0 && copy_disk == NONE -> copy_disk = disk }
	:: atomic { label != 0 && copy_control == NONE -> copy_control = control_redo }
	:: atomic {
			copy_slot != NONE && copy_disk != NONE && copy_control != NONE ->
			restore();
			break
		}
	od
}
