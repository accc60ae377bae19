/*
 * dirty.pml
 *	  Marks in shared memory against the flush, the loader and the query.
 *
 * One page of the map, and in it the two slots of one block and a slot of a
 * neighbour.  Two processes mark the block at the LSNs 3 and 4, each memory
 * access a step of its own.  The file holds marks at 2 from before the start,
 * not merged yet.  The page is flushed again and again.
 *
 * Must hold: a mark that is complete when a flush begins is in the file when
 * that flush ends, and the old mark never leaves the file; a mark that is
 * complete when a query begins is in its answer, and so is the old one.
 */
#include "common.pml"

#define OLD 2

byte slot[3];			/* ptrack_lines; 2 is the neighbour's */
byte line_max;			/* max in ptrack_summaries */
bool flag;				/* ptrack_dirty */
byte file[3] = OLD;		/* the page as the file has it */
bool unread = true;		/* PAGE_UNREAD */
bool lock;				/* ptrack_shared->lock */
bool complete[5];		/* by LSN: the mark is made */

/* RULE CAS advance (map.c): read, compare and store instead of compare-and-swap */
inline advance(x, v)
{
#ifndef NO_CAS
	atomic { if :: x < v -> x = v; raised = true :: else fi }
#else
	cur = x;
	if :: cur < v -> x = v; raised = true :: else fi
#endif
}

inline set_flag()
{
	if :: !flag -> flag = true :: else fi
}

proctype Mark(byte lsn)
{
	bool raised;
#ifdef NO_CAS
	byte cur;
#endif

	/* RULE FLAG_LAST line_marked (map.c): the dirty flag is set before the slots are stored */
#ifdef NO_FLAG_LAST
	set_flag();
#endif
	advance(slot[0], lsn);
	advance(slot[1], lsn);
	/* RULE FINISH ptrack_mark (map.c): return early if no slot was raised */
#ifdef NO_FINISH
	if :: !raised -> goto done :: else fi;
#endif
	advance(line_max, lsn);
#ifndef NO_FLAG_LAST
	set_flag();
#endif
#ifdef NO_FINISH
done:
#endif
	complete[lsn] = true
}

/* merge_page and ptrack_merge_line; the caller has the lock */
inline merge()
{
	if
	:: unread ->
		atomic { RAISE(slot[0], file[0]) };
		atomic { RAISE(slot[1], file[1]) };
		atomic { RAISE(slot[2], file[2]) };
		atomic { RAISE(line_max, LESSER(file[0], file[1])) };
		unread = false
	:: else
	fi
}

proctype Loader()
{
	atomic { !lock -> lock = true };
	merge();
	lock = false
}

proctype Flush()
{
	byte copy[3];
	bool before[5];

	do
	:: true ->
		atomic {
			!lock -> lock = true;
			before[3] = complete[3]; before[4] = complete[4]
		};
		if
		:: flag ->
			/* RULE READ_FIRST write_pages (mapflush.c): a page that was not read is overwritten */
#ifndef NO_READ_FIRST
			merge();
#endif
			/* RULE CLEAR_FIRST copy_page (mapflush.c): the dirty flag is cleared after the copy */
#ifndef NO_CLEAR_FIRST
			flag = false;
#endif
			copy[0] = slot[0];
			copy[1] = slot[1];
			copy[2] = slot[2];
#ifdef NO_CLEAR_FIRST
			flag = false;
#endif
			atomic { file[0] = copy[0]; file[1] = copy[1]; file[2] = copy[2] }
		:: else
		fi;
		atomic {
			lost(file[0] < OLD || file[1] < OLD || file[2] < OLD);
			lost(before[3] && (file[0] < 3 || file[1] < 3));
			lost(before[4] && (file[0] < 4 || file[1] < 4));
			copy[0] = 0; copy[1] = 0; copy[2] = 0;
			lock = false
		}
	od
}

proctype Query(byte lsn)
{
	bool before[5];
	bool reported;

	/* RULE READ_ALL ptrack_decide_init_lsn (mapload.c): no ptrack_file_read_all */
#ifndef NO_READ_ALL
	atomic { !lock -> lock = true };
	merge();
	lock = false;
#endif
	atomic { before[3] = complete[3]; before[4] = complete[4] };
	/* ptrack_chunks_changed */
	reported = line_max >= lsn;
	reported = reported && slot[0] >= lsn;
	reported = reported && slot[1] >= lsn;
	atomic {
		lost(!reported && OLD >= lsn);
		lost(!reported && before[3] && 3 >= lsn);
		lost(!reported && before[4] && 4 >= lsn)
	}
}

init
{
	byte lsn;

	select(lsn : 2 .. 4);
	atomic { run Mark(3); run Mark(4); run Loader(); run Flush(); run Query(lsn) }
}
