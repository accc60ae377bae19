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

#define PTRACK_DIRECTORY	"global"
#define PTRACK_FILE			"global/ptrack.map"
#define PTRACK_FILE_TMP		"global/ptrack.map.tmp"
#define PTRACK_FILE_MMAP	"global/ptrack.map.mmap"	/* of 2.2 and older */

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
