/*-------------------------------------------------------------------------
 *
 * mapfile.h
 *	  The map's file: loading, flushing, deleting.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_MAPFILE_H
#define PTRACK_MAPFILE_H

#include "access/xlogdefs.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"

#define PTRACK_DIRECTORY	"global"
#define PTRACK_FILE			"global/ptrack.map"
#define PTRACK_FILE_TMP		"global/ptrack.map.tmp"
#define PTRACK_FILE_MMAP	"global/ptrack.map.mmap"	/* of 2.2 and older */

/*
 * ereport, at a level below ERROR, to the server's log alone: whoever holds
 * the map's lock, or that of a buffer that is being written, must not wait for
 * a client that does not read.  Without its context, which might need memory,
 * and must not fail in between.
 */
#define report_to_log(elevel, rest) \
	do { \
		CommandDest dest_ = whereToSendOutput; \
		ErrorContextCallback *context_ = error_context_stack; \
		if (dest_ == DestRemote) \
			whereToSendOutput = DestNone; \
		error_context_stack = NULL; \
		ereport(elevel, rest); \
		error_context_stack = context_; \
		whereToSendOutput = dest_; \
	} while (0)

extern bool ptrack_file_remove(void);
extern void ptrack_file_delete(void);
extern void ptrack_file_start(void);
extern bool ptrack_file_read_some(void);
extern void ptrack_file_read_all(void);
extern bool ptrack_read_next(int rounds);
extern void ptrack_read_pages(int fd, uint32 number, uint32 n);
extern void ptrack_file_flush(XLogRecPtr redo, bool end_of_recovery);
extern void ptrack_file_write_through(void);
extern void ptrack_file_recovery_ended(void);
extern void ptrack_file_write_count(void);
extern XLogRecPtr ptrack_file_known_from(void);
extern XLogRecPtr ptrack_decide_init_lsn(void);

#endif							/* PTRACK_MAPFILE_H */
