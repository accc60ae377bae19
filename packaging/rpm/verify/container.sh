#!/bin/sh
# What verify-packages does with rpms in a clean container of their distribution, as root, without network and without
# systemd: one step a call.
#
#   container.sh STEP
#
# In the environment: MAJOR; PACKAGES, the files to install; BEFORE, those of an earlier release of the same packages, or
# nothing; WORK, a directory that is looked into from outside: before/, after/, crashed/ and upgraded/ have the relation
# files, map, crashed.map and upgraded.map what ptrack_get_pagemapset() answered, since `before`.
set -eu
export LC_ALL=C.UTF-8
cd /
data=/var/lib/pgsql/$MAJOR/data
bin=/usr/pgsql-$MAJOR/bin
# Whoever the directory is of has to be able to remove what is in it.
trap 'chown -R --reference="$WORK" "$WORK"' EXIT

fail()
{
	echo "FAILED: $*" >&2
	exit 1
}

# What the packages depend on is there already; there is nobody to ask for more.
offline()
{
	dnf -y --disablerepo='*' --nogpgcheck --setopt=clean_requirements_on_remove=False "$@"
}

names()
{
	for file; do
		rpm -qp --nosignature --qf '%{NAME}\n' "$file"
	done
}

# -1 where the first package is of an earlier version than the second one: rpm's own order, of epochs, then of versions,
# then of releases, since rpm of EL 8 compares no more than one of these at once.
order()
{
	set -- $(rpm -qp --nosignature --qf '%{EPOCHNUM} %{VERSION} %{RELEASE}' "$1") \
		$(rpm -qp --nosignature --qf '%{EPOCHNUM} %{VERSION} %{RELEASE}' "$2")
	for pair in "$1 $4" "$2 $5" "$3 $6"; do
		found=$(rpm --eval "%{lua:print(rpm.vercmp('${pair% *}', '${pair#* }'))}")
		[ "$found" = 0 ] || break
	done
	echo "$found"
}

# What is upgraded from is of earlier versions: dnf would do nothing at all, or the contrary, and not say so.
older()
{
	for file in $PACKAGES; do
		for old in $BEFORE; do
			[ "$(names "$old")" = "$(names "$file")" ] || continue
			[ "$(order "$old" "$file")" = -1 ] || fail "${old##*/} is not earlier than ${file##*/}"
		done
	done
}

installed()
{
	for file; do
		rpm -q "$(rpm -qp --nosignature --qf '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}' "$file")" ||
			fail "${file##*/} was not installed"
	done
}

sql()
{
	runuser -u postgres -- "$bin/psql" -XAtq -v ON_ERROR_STOP=1 "$@"
}

server()
{
	runuser -u postgres -- "$bin/pg_ctl" -D "$data" -w -l "/var/lib/pgsql/$MAJOR/server.log" "$@" ||
		{ tail -n 20 "/var/lib/pgsql/$MAJOR/server.log" "$data"/log/*.log >&2 || :; fail "pg_ctl $*"; }
}

# Everything in the container, but what rpm, dnf and any system write.
listing()
{
	find / -xdev "(" -path "$WORK" -o -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp \
		-o -path /var/log -o -path /var/cache -o -path /var/lib/dnf -o -path /var/lib/rpm -o -path /usr/lib/sysimage \
		-o -path /root -o -path /etc/ld.so.cache -o -path /etc/.pwd.lock -o -path '/etc/*passwd-' -o -path '/etc/*shadow-' \
		-o -path '/etc/*group-' ")" -prune -o -printf '%p %y %m %u:%g %l\n' | sort
}

# For others to read, whoever they are.
files()
{
	mkdir "$WORK/$1"
	cp -R "$data/base" "$data/global" "$WORK/$1/"
	chmod -R a+rX "$WORK/$1"
}

reported()
{
	sql -d try -c "SELECT path || ' ' || encode(pagemap, 'hex') FROM ptrack_get_pagemapset('$(cat "$WORK/since")')"
}

case $1 in
install)
	older
	listing > "$WORK/before.list"
	rpm -qa | sort > "$WORK/before.packages"
	offline install ${BEFORE:-$PACKAGES}
	installed ${BEFORE:-$PACKAGES}
	PGSETUP_INITDB_OPTIONS=--data-checksums "postgresql-$MAJOR-setup" initdb
	cat >> "$data/postgresql.conf" <<-END
		shared_preload_libraries = 'ptrack'
		ptrack.map_size = 1
		autovacuum = off
	END
	[ "$(stat -c %U:%G:%a "$data")" = postgres:postgres:700 ] || fail "$data is not postgres' alone"
	server start
	[ -S /run/postgresql/.s.PGSQL.5432 ] || fail "there is no socket in /run/postgresql"
	sql -c 'SELECT version()' -c 'CREATE DATABASE try' -c 'CREATE DATABASE modules'
	for name in $(sql -c 'SELECT name FROM pg_available_extensions ORDER BY 1'); do
		sql -d modules -c 'SET client_min_messages = warning' -c "CREATE EXTENSION IF NOT EXISTS \"$name\" CASCADE" ||
			fail "CREATE EXTENSION $name"
	done
	;;
track)
	sql -d try -c 'CREATE EXTENSION ptrack' \
		-c "CREATE TABLE kept AS SELECT n, repeat('x', 80) AS filler FROM generate_series(1, 20000) n" \
		-c 'CREATE TABLE changed AS SELECT * FROM kept' -c 'CREATE INDEX ON changed (n)' \
		-c 'VACUUM ANALYZE' -c 'CHECKPOINT' -c 'CHECKPOINT'
	sql -d try -c 'SELECT redo_lsn FROM pg_control_checkpoint()' > "$WORK/since"
	files before
	sql -d try -c 'UPDATE changed SET n = -n WHERE n % 1000 = 0' \
		-c "INSERT INTO changed SELECT n, 'new' FROM generate_series(1, 5000) n" \
		-c 'CREATE TABLE later AS SELECT * FROM changed' -c 'VACUUM changed' -c 'CHECKPOINT'
	files after
	reported > "$WORK/map"
	;;
crash)
	sql -d try -c 'UPDATE changed SET n = n + 1 WHERE n % 700 = 0' -c 'CREATE TABLE last AS SELECT * FROM later'
	pid=$(head -n 1 "$data/postmaster.pid")
	kill -KILL "$pid"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		[ -e "/proc/$pid" ] || break
		sleep 1
	done
	sleep 1 # its children hold its shared memory for a moment more
	server start
	sql -d try -c 'CHECKPOINT'
	files crashed
	reported > "$WORK/crashed.map"
	valid=$(sql -d try -c 'SELECT ptrack_init_lsn()')
	server restart
	[ "$(sql -d try -c 'SELECT ptrack_init_lsn()')" = "$valid" ] || fail "the map was not kept at a restart"
	;;
upgrade)
	valid=$(sql -d try -c 'SELECT ptrack_init_lsn()')
	offline install $PACKAGES
	installed $PACKAGES
	# nobody restarts servers where there is no systemd; until then it is the one of before
	server restart
	[ "$(sql -d try -c 'SELECT ptrack_init_lsn()')" = "$valid" ] || fail "the map did not survive the upgrade"
	sql -d try -c 'UPDATE changed SET n = n + 1 WHERE n % 300 = 0' -c 'CREATE TABLE newest AS SELECT * FROM last' \
		-c 'CHECKPOINT'
	files upgraded
	reported > "$WORK/upgraded.map"
	;;
remove)
	server stop
	offline remove $(names $PACKAGES)
	[ -f "$data/PG_VERSION" ] || fail "the cluster went with the packages"
	rm -r /var/lib/pgsql
	rpm -qa | sort | diff "$WORK/before.packages" - || fail "packages are not as before"
	listing > "$WORK/after.list"
	diff "$WORK/before.list" "$WORK/after.list" || fail "files are not as before"
	;;
*)
	fail "what is $1?"
	;;
esac
