/*
 * flush.pml
 *	  The steps of the flush in the file, errors, and a loss of power.
 *
 * The map has two pages.  What is written goes to the system's cache, and to
 * the disk at any time, or when it is synced.  A write or an fsync may fail;
 * after a failed fsync the cache counts as clean, and is not written again.
 * Marks are made at any time.  Power may be lost at any time: each page and
 * the header are then as they are on the disk, or as they are in the cache,
 * or torn if these differ.  At the end the file is loaded.
 *
 * Must hold: a file that is taken over has every mark that was complete when
 * the checkpoint that pg_control names determined its redo point.
 */
#include "common.pml"

#ifndef MARKS
#define MARKS 2
#endif
#ifndef FLUSHES
#define FLUSHES 3
#endif
#ifndef ERRORS
#define ERRORS 2
#endif

#define TORN 255
#define HEADER 2		/* index of the header, whose "mark" is its redo point */

byte ins = 1;
byte slot[2];			/* in memory */
bool dirty[2];
byte complete[2];		/* the marks that are complete: slot and flag are set */
bool in_place = true;
byte cache[3];			/* the file, as the system shows it ... */
bool clean[3] = true;	/* ... which need not write it ... */
byte disk[3];			/* ... and as it is on the disk */
byte control_redo;
byte needed[2];			/* marks that were complete at control_redo */
byte errors;
bool power = true;

inline write(n, x)
{
	atomic { cache[n] = x; clean[n] = false }
}

inline fsync_file()
{
	if
	:: atomic {
			if :: !clean[0] -> disk[0] = cache[0]; clean[0] = true :: else fi;
			if :: !clean[1] -> disk[1] = cache[1]; clean[1] = true :: else fi;
			if :: !clean[HEADER] -> disk[HEADER] = cache[HEADER]; clean[HEADER] = true :: else fi
		}
	:: atomic {
			errors < ERRORS -> errors++;
			clean[0] = true; clean[1] = true; clean[HEADER] = true;
			/* RULE FAILED_FSYNC write_in_place (mapflush.c): in_place stays true after a failed fsync */
#ifndef NO_FAILED_FSYNC
			in_place = false;
#endif
			failed = true
		}
	fi
}

inline write_page(n)
{
	if
	:: dirty[n] ->
		dirty[n] = false;
		copy[n] = slot[n];
		if
		:: write(n, copy[n])
		:: atomic {
				errors < ERRORS -> errors++;
				/* RULE REDIRTY write_pages (mapflush.c): dirty is not set again after a failed write */
#ifndef NO_REDIRTY
				dirty[n] = true;
#endif
				failed = true
			}
		fi
	:: else
	fi
}

inline write_header()
{
	write(HEADER, redo)
}

inline write_in_place()
{
	/* RULE PAGES_FIRST write_in_place (mapflush.c): the header is written before the pages */
#ifdef NO_PAGES_FIRST
	write_header();
#endif
	write_page(0);
	/* RULE FAILED_WRITE write_in_place (mapflush.c): the header is written although a page was not */
#ifdef NO_FAILED_WRITE
	failed = false;
#endif
	if :: !failed -> write_page(1) :: failed fi;
#ifdef NO_FAILED_WRITE
	failed = false;
#endif
	/* RULE FSYNC_PAGES write_in_place (mapflush.c): the pages are not synced before the header is written */
#ifndef NO_FSYNC_PAGES
	if :: !failed -> fsync_file() :: failed fi;
#endif
#ifndef NO_PAGES_FIRST
	if :: !failed -> write_header(); fsync_file() :: failed fi
#else
	if :: !failed -> fsync_file() :: failed fi
#endif
}

/* the file is there when durable_rename has ended, or the old one is */
inline write_new_file()
{
	dirty[0] = false; copy[0] = slot[0];
	dirty[1] = false; copy[1] = slot[1];
	if
	:: atomic {
			cache[0] = copy[0]; cache[1] = copy[1]; cache[HEADER] = redo;
			disk[0] = copy[0]; disk[1] = copy[1]; disk[HEADER] = redo;
			clean[0] = true; clean[1] = true; clean[HEADER] = true;
			in_place = true
		}
	:: atomic { errors < ERRORS -> errors++ }
	fi
}

proctype Checkpointer()
{
	byte redo;
	byte copy[2];
	byte before[2];
	bool failed;
	byte n;

	{
		do
		:: n < FLUSHES ->
			atomic { n++; redo = ins; before[0] = complete[0]; before[1] = complete[1] };
			if
			:: in_place -> write_in_place()
			:: !in_place -> write_new_file()
			fi;
			/* the checkpoint goes on, whether the flush went well or not */
			atomic {
				ins++;			/* the checkpoint's record */
				control_redo = redo; needed[0] = before[0]; needed[1] = before[1];
				redo = 0; copy[0] = 0; copy[1] = 0; before[0] = 0; before[1] = 0; failed = false
			}
		:: else -> break
		od
	} unless { !power }
}

proctype Marker()
{
	byte n;
	byte i;

	{
		do
		:: n < MARKS ->
			n++;
			if :: i = 0 :: i = 1 fi;
			atomic { slot[i] = ins; ins++ };
			atomic { dirty[i] = true; complete[i] = slot[i] }
		:: else -> break
		od
	} unless { !power }
}

/* the system writes when it likes */
proctype Kernel()
{
	do
	:: atomic { power && !clean[0] -> disk[0] = cache[0]; clean[0] = true }
	:: atomic { power && !clean[1] -> disk[1] = cache[1]; clean[1] = true }
	:: atomic { power && !clean[HEADER] -> disk[HEADER] = cache[HEADER]; clean[HEADER] = true }
	:: !power -> break
	od
}

/* ptrack_file_start and the loader */
inline load()
{
	/* RULE HEADER_CRC judge_file (mapload.c): the header's checksum is not compared */
#ifndef NO_HEADER_CRC
	if :: disk[HEADER] == TORN -> goto refused :: else fi;
#endif
	if :: disk[HEADER] < control_redo -> goto refused :: else fi;
	/* RULE PAGE_CRC merge_page (mapload.c): a page's checksum is not compared */
	if
#ifndef NO_PAGE_CRC
	:: disk[0] == TORN || disk[1] == TORN -> goto refused
#else
	:: disk[0] == TORN -> disk[0] = 0
	:: disk[1] == TORN -> disk[1] = 0
#endif
	:: else
	fi;
	lost(disk[0] < needed[0] || disk[1] < needed[1]);
refused:
	skip
}

proctype PowerLoss()
{
	byte n;

	atomic {
		power = false;
		do
		:: n < 3 ->
			if
			:: disk[n] != cache[n] -> disk[n] = TORN
			:: skip
			fi;
			n++
		:: else -> break
		od;
		load()
	}
}

init
{
	atomic { run Checkpointer(); run Marker(); run Kernel(); run PowerLoss() }
}
