/*
 * labelled.pml
 *	  A standby that is behind its disk, and a copy of it that has a backup_label.
 *
 * The model is truncate.pml, from where a standby calls itself consistent at a
 * point that its writes do not move.  A base backup of it begins, and a parent
 * after that, at a later restartpoint.  The backup has the disk, the map's file
 * and pg_control as they are when the standby is killed; it is restored,
 * replays from its label, and calls itself consistent too early, as the standby
 * does.  Nobody is promoted, and no life is without the library.
 */
#define LABELLED

#ifndef CHECKPOINTS
#define CHECKPOINTS 2
#endif

bool labels;			/* the backup has begun */
byte start_redo = 3;	/* of a start for which known_redo counts */
byte file_known;		/* the header's known_redo */

/* RULE EARLY_KNOWN scan_cluster (query.c): the LSN is compared with start_redo */
#ifdef NO_EARLY_KNOWN
#define EARLY_UNTIL	start_redo
#endif

#include "truncate.pml"
