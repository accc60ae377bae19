/*
 * fault.c
 *	  Preloaded into a server under test: stops a process at a system call on a
 *	  file, or has the call fail.
 *
 * The test writes what it wants into a file that both sides map (struct
 * Control; PTRACK_FAULT names it), and sets "armed" last.  A call counts if
 * its kind is asked for and the file's path contains the text; the one whose
 * number is asked for is acted on, and with "onwards" all after it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum Kind
{
	WRITE = 1, SYNC = 2, RENAME = 4, TRUNCATE = 8, UNLINK = 16, OPENDIR = 32, READ = 64,
	OPEN = 128, STAT = 256
};

enum Action
{
	COUNT = 0, STOP_BEFORE = 1, STOP_AFTER = 2, STOP_AROUND = 3, STOP_HALFWAY = 4, FAIL = 5,
	STOP_AND_FAIL = 6, FAIL_HALFWAY = 7
};

struct Control
{
	atomic_int	armed;
	atomic_int	kinds;
	atomic_int	number;			/* of the call to act on, from 1 */
	atomic_int	action;
	atomic_int	error;			/* errno of a failure */
	atomic_int	onwards;		/* all calls after it, too */
	atomic_int	process;		/* whose calls, or 0 for all of them */
	atomic_int	count;			/* calls so far */
	atomic_int	stopped;		/* process that waits to be let go, or 0 */
	char		text[224];		/* a part of the path; "|" between others */
};

static struct Control *control;

__attribute__((constructor)) static void
attach(void)
{
	const char *name = getenv("PTRACK_FAULT");
	int			fd = name != NULL ? open(name, O_RDWR) : -1;

	if (fd < 0)
		return;
	control = mmap(NULL, sizeof(struct Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED)
		control = NULL;
	close(fd);
}

static void *
next(const char *name)
{
	void	   *found = dlsym(RTLD_NEXT, name);

	if (found == NULL)
		abort();
	return found;
}

/* Wait until the test lets go, or kills us. */
static void
stop(void)
{
	atomic_store(&control->stopped, (int) getpid());
	while (atomic_load(&control->stopped) == (int) getpid())
		usleep(1000);
}

/* Does the path contain one of the texts, or end with one that has "$" at its end? */
static int
concerns(const char *path)
{
	const char *text = control->text;

	for (;;)
	{
		size_t		n = strcspn(text, "|");
		size_t		length = strlen(path);

		if (n > 0 && text[n - 1] == '$')
		{
			if (length >= n - 1 && memcmp(path + length - (n - 1), text, n - 1) == 0)
				return 1;
		}
		else if (memmem(path, length, text, n) != NULL)
			return 1;
		if (text[n] == '\0')
			return 0;
		text += n + 1;
	}
}

/* What to do with this call; COUNT is to let it be. */
static enum Action
judge(enum Kind kind, const char *path)
{
	int			n;

	if (control == NULL || !atomic_load(&control->armed) ||
		(atomic_load(&control->kinds) & kind) == 0 || !concerns(path))
		return COUNT;
	if (control->process != 0 && control->process != (int) getpid())
		return COUNT;
	n = atomic_fetch_add(&control->count, 1) + 1;
	if (n == control->number || (control->onwards && n > control->number))
		return control->action;
	return COUNT;
}

static enum Action
judge_fd(enum Kind kind, int fd)
{
	char		link[64];
	char		path[PATH_MAX];
	ssize_t		n;

	if (control == NULL || !atomic_load(&control->armed))
		return COUNT;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return COUNT;
	path[n] = '\0';
	return judge(kind, path);
}

/* Around a call whose failure is -1; halfway is what half of it is. */
#define AROUND(judged, type, call, halfway, failed) \
	do { \
		enum Action action = (judged); \
		type		result; \
		int			saved; \
		if (action == STOP_BEFORE || action == STOP_AROUND || action == STOP_AND_FAIL) \
			stop(); \
		if (action == FAIL || action == STOP_AND_FAIL) \
		{ \
			errno = control->error; \
			return (failed); \
		} \
		if (action == FAIL_HALFWAY) \
		{ \
			(void) (halfway); \
			errno = control->error; \
			return (failed); \
		} \
		if (action == STOP_HALFWAY) \
		{ \
			(void) (halfway); \
			stop(); \
		} \
		result = (call); \
		saved = errno; \
		if (action == STOP_AFTER || action == STOP_AROUND) \
			stop(); \
		errno = saved; \
		return result; \
	} while (0)

#define REAL(type, name, ...) \
	static type (*real) (__VA_ARGS__); \
	if (real == NULL) \
		real = (type (*) (__VA_ARGS__)) next(#name)

#define PWRITE(name, offset_type) \
	ssize_t name(int fd, const void *buf, size_t size, offset_type offset) \
	{ \
		REAL(ssize_t, name, int, const void *, size_t, offset_type); \
		AROUND(judge_fd(WRITE, fd), ssize_t, real(fd, buf, size, offset), \
			   real(fd, buf, size / 2, offset), -1); \
	}

#define PWRITEV(name, offset_type) \
	ssize_t name(int fd, const struct iovec *iov, int n, offset_type offset) \
	{ \
		REAL(ssize_t, name, int, const struct iovec *, int, offset_type); \
		AROUND(judge_fd(WRITE, fd), ssize_t, real(fd, iov, n, offset), \
			   real(fd, iov, (n + 1) / 2, offset), -1); \
	}

#define PREAD(name, offset_type) \
	ssize_t name(int fd, void *buf, size_t size, offset_type offset) \
	{ \
		REAL(ssize_t, name, int, void *, size_t, offset_type); \
		AROUND(judge_fd(READ, fd), ssize_t, real(fd, buf, size, offset), 0, -1); \
	}

#define OPENING(name) \
	int name(const char *path, int flags, ...) \
	{ \
		mode_t		mode = 0; \
		va_list		args; \
		REAL(int, name, const char *, int, ...); \
		if ((flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE) \
		{ \
			va_start(args, flags); \
			mode = va_arg(args, mode_t); \
			va_end(args); \
		} \
		AROUND(judge(OPEN, path), int, real(path, flags, mode), 0, -1); \
	}

#define STREAM(name) \
	FILE *name(const char *path, const char *mode) \
	{ \
		REAL(FILE *, name, const char *, const char *); \
		AROUND(judge(OPEN, path), FILE *, real(path, mode), NULL, NULL); \
	}

OPENING(open)
OPENING(open64)
STREAM(fopen)
STREAM(fopen64)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)
PREAD(pread, off_t)
PREAD(pread64, off64_t)

/* file_copy_method = clone copies with it; half of a call is a shorter one */
ssize_t
copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned int flags)
{
	REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned int);
	AROUND(judge_fd(WRITE, to), ssize_t, real(from, from_at, to, to_at, size, flags),
		   real(from, from_at, to, to_at, size / 2, flags), -1);
}

ssize_t
write(int fd, const void *buf, size_t size)
{
	REAL(ssize_t, write, int, const void *, size_t);
	AROUND(judge_fd(WRITE, fd), ssize_t, real(fd, buf, size), real(fd, buf, size / 2), -1);
}

int
fsync(int fd)
{
	REAL(int, fsync, int);
	AROUND(judge_fd(SYNC, fd), int, real(fd), 0, -1);
}

int
fdatasync(int fd)
{
	REAL(int, fdatasync, int);
	AROUND(judge_fd(SYNC, fd), int, real(fd), 0, -1);
}

int
ftruncate(int fd, off_t size)
{
	REAL(int, ftruncate, int, off_t);
	AROUND(judge_fd(TRUNCATE, fd), int, real(fd, size), 0, -1);
}

int
rename(const char *from, const char *to)
{
	REAL(int, rename, const char *, const char *);
	AROUND(judge(RENAME, from), int, real(from, to), 0, -1);
}

int
unlink(const char *path)
{
	REAL(int, unlink, const char *);
	AROUND(judge(UNLINK, path), int, real(path), 0, -1);
}

int
stat(const char *path, struct stat *found)
{
	REAL(int, stat, const char *, struct stat *);
	AROUND(judge(STAT, path), int, real(path, found), 0, -1);
}

/* what stat is called before glibc 2.33 */
int
__xstat(int version, const char *path, struct stat *found)
{
	REAL(int, __xstat, int, const char *, struct stat *);
	AROUND(judge(STAT, path), int, real(version, path, found), 0, -1);
}

DIR *
opendir(const char *path)
{
	REAL(DIR *, opendir, const char *);
	AROUND(judge(OPENDIR, path), DIR *, real(path), 0, NULL);
}
