/*-------------------------------------------------------------------------
 *
 * relfile.h
 *	  Files of relations: their names and their directories.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_RELFILE_H
#define PTRACK_RELFILE_H

#include "common/relpath.h"

/* One file (segment) of a relation's fork. */
typedef struct RelFile
{
	Oid			rel;			/* relfilenumber */
	ForkNumber	fork;
	uint32		segment;
	uint64		size;			/* bytes */
	uint64		expected;		/* blocks that it may have soon */
} RelFile;

typedef struct RelFileList
{
	RelFile    *files;
	size_t		nfiles;
	size_t		room;
} RelFileList;

typedef void (*DatabaseDirCallback) (const char *path, Oid spc, Oid db, void *arg);

extern bool relfile_parse_name(const char *name, RelFile *file);
extern bool relfile_parse_dir(const char *path, Oid *spc, Oid *db);
extern RelFile *relfile_append(RelFileList *list, const RelFile *file);
extern RelFile *relfile_find(const RelFileList *list, const RelFile *file);
extern void relfile_list(const char *dir, RelFileList *list);
extern uint64 relfile_blocks(const RelFile *file);
extern void relfile_each_database(DatabaseDirCallback callback, void *arg);

#endif							/* PTRACK_RELFILE_H */
