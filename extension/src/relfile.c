/*-------------------------------------------------------------------------
 *
 * relfile.c
 *	  Files of relations: their names and their directories.
 *
 * No locks: what is dropped while we look is not there.  Anything else that
 * cannot be read is an ERROR, for an answer without it would be wrong.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "catalog/pg_tablespace_d.h"
#include "compat.h"
#include "relfile.h"
#include "storage/fd.h"

/*
 * Parse a decimal number without leading zeros that fits into 32 bits.
 */
static bool
parse_number(const char **p, uint32 *value)
{
	uint64		n = 0;
	const char *s = *p;

	if (*s < '1' || *s > '9')
		return false;
	for (; *s >= '0' && *s <= '9'; s++)
	{
		n = n * 10 + (*s - '0');
		if (n > PG_UINT32_MAX)
			return false;
	}
	*p = s;
	*value = (uint32) n;
	return true;
}

/*
 * Is this the name of a file of a non-temporary relation?  Sets all of *file
 * but its size.
 */
bool
relfile_parse_name(const char *name, RelFile *file)
{
	const char *p = name;

	if (!parse_number(&p, &file->rel))
		return false;
	file->fork = MAIN_FORKNUM;
	if (*p == '_')
	{
		int			n = forkname_chars(p + 1, &file->fork);

		if (n <= 0)
			return false;
		p += n + 1;
	}
	file->segment = 0;
	if (*p == '.')
	{
		p++;
		if (!parse_number(&p, &file->segment))
			return false;
	}
	return *p == '\0';
}

/*
 * Parse a database's directory, relative to the data directory.
 */
bool
relfile_parse_dir(const char *path, Oid *spc, Oid *db)
{
	const char *p = path;
	const char *version = "/" TABLESPACE_VERSION_DIRECTORY "/";

	if (strcmp(path, "global") == 0)
	{
		*spc = GLOBALTABLESPACE_OID;
		*db = InvalidOid;
		return true;
	}
	if (strncmp(p, "base/", 5) == 0)
	{
		p += 5;
		*spc = DEFAULTTABLESPACE_OID;
	}
	else if (strncmp(p, "pg_tblspc/", 10) == 0)
	{
		p += 10;
		if (!parse_number(&p, spc) || strncmp(p, version, strlen(version)) != 0)
			return false;
		p += strlen(version);
	}
	else
		return false;
	return parse_number(&p, db) && *p == '\0';
}

/*
 * Blocks in the file.  A last one that is not whole counts.
 */
uint64
relfile_blocks(const RelFile *file)
{
	return Min((file->size + BLCKSZ - 1) / BLCKSZ, (uint64) RELSEG_SIZE);
}

RelFile *
relfile_append(RelFileList *list, const RelFile *file)
{
	if (list->nfiles == list->room)
	{
		list->room = Max(list->room * 2, 256);
		list->files = list->files == NULL ?
			palloc_extended(list->room * sizeof(RelFile), MCXT_ALLOC_HUGE) :
			repalloc_huge(list->files, list->room * sizeof(RelFile));
	}
	list->files[list->nfiles] = *file;
	return &list->files[list->nfiles++];
}

/* The file in the list of the same relation, fork and segment, or NULL. */
RelFile *
relfile_find(const RelFileList *list, const RelFile *file)
{
	for (size_t i = 0; i < list->nfiles; i++)
	{
		RelFile    *found = &list->files[i];

		if (found->rel == file->rel && found->fork == file->fork && found->segment == file->segment)
			return found;
	}
	return NULL;
}

/*
 * Append the relations' files in a database's directory, without the empty
 * ones but for init forks, which tell that a relation is unlogged: that of a
 * heap is empty.  One that does not exist has none.
 */
void
relfile_list(const char *path, RelFileList *list)
{
	DIR		   *dir = AllocateDir(path);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return;
	while ((de = ReadDir(dir, path)) != NULL)
	{
		char		file_path[MAXPGPATH * 2];
		struct stat st;
		RelFile		file = {0};

		CHECK_FOR_INTERRUPTS();
		if (!relfile_parse_name(de->d_name, &file))
			continue;
		snprintf(file_path, sizeof(file_path), "%s/%s", path, de->d_name);
		if (stat(file_path, &st) != 0)
		{
			if (errno == ENOENT)
				continue;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not stat file \"%s\": %m", file_path)));
		}
		if (!S_ISREG(st.st_mode) || (st.st_size == 0 && file.fork != INIT_FORKNUM))
			continue;
		file.size = (uint64) st.st_size;
		relfile_append(list, &file);
	}
	FreeDir(dir);
}

/*
 * Call back for each subdirectory of path that is a database's; false if path
 * does not exist.
 */
static bool
each_database_in(const char *path, Oid spc, DatabaseDirCallback callback, void *arg)
{
	DIR		   *dir = AllocateDir(path);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return false;
	while ((de = ReadDir(dir, path)) != NULL)
	{
		char		sub_path[MAXPGPATH * 2];
		const char *p = de->d_name;
		Oid			db;

		if (!parse_number(&p, &db) || *p != '\0')
			continue;
		snprintf(sub_path, sizeof(sub_path), "%s/%s", path, de->d_name);
		callback(sub_path, spc, db, arg);
	}
	FreeDir(dir);
	return true;
}

/*
 * The same for a tablespace, which is a link, or a directory if it is in
 * place.  One that is being dropped loses what it leads to first and the link
 * soon after; if the link stays, there is something that cannot be read.
 */
static void
each_database_in_tablespace(Oid spc, DatabaseDirCallback callback, void *arg)
{
	char		link[MAXPGPATH];
	char		path[MAXPGPATH];
	struct stat st;

	snprintf(link, sizeof(link), "pg_tblspc/%u", spc);
	snprintf(path, sizeof(path), "%s/%s", link, TABLESPACE_VERSION_DIRECTORY);

	for (int tries = 0; !each_database_in(path, spc, callback, arg); tries++)
	{
		if (lstat(link, &st) != 0 && errno == ENOENT)
			return;
		if (tries == 50)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FILE),
					 errmsg("tablespace directory \"%s\" does not exist", path)));
		CHECK_FOR_INTERRUPTS();
		pg_usleep(20000L);
	}
}

/*
 * Call back for each directory of relations' files, wherever it is.
 */
void
relfile_each_database(DatabaseDirCallback callback, void *arg)
{
	DIR		   *dir;
	struct dirent *de;

	callback("global", GLOBALTABLESPACE_OID, InvalidOid, arg);
	if (!each_database_in("base", DEFAULTTABLESPACE_OID, callback, arg))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FILE),
				 errmsg("directory \"%s\" does not exist", "base")));

	dir = AllocateDir("pg_tblspc");
	while ((de = ReadDir(dir, "pg_tblspc")) != NULL)
	{
		const char *p = de->d_name;
		Oid			spc;

		if (parse_number(&p, &spc) && *p == '\0')
			each_database_in_tablespace(spc, callback, arg);
	}
	FreeDir(dir);
}
