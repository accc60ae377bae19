#!/bin/sh
# try.sh MAJOR: installs packages/*.rpm on the system that it runs on, which is there for this alone and has
# booted with systemd; uses the server as its users do; erases the packages. Works in the current
# directory. Says "ok: ..." for whatever went well, and ends at the first thing that did not.
#
# What ptrack said, and what changed in truth, is left for others to compare: before/, after/, crashed/
# have the relation files, map and crashed.map what ptrack_get_pagemapset() answered, since `before`.
# Where earlier/ has packages of an earlier release, all that is done with these, before they are upgraded as the
# server runs; upgraded/ and upgraded.map are what was there, and was answered, then.
set -eu
export LC_ALL=C.UTF-8
major=$1
here=$PWD
service=postgresql-$major
home=/var/lib/pgsql
data=$home/$major/data

fail()
{
	echo "failed: $*"
	journalctl -q --no-pager -n 20 -u "$service" || :
	tail -n 20 "$data"/log/*.log 2>/dev/null || :
	exit 1
}

# expected: what scripts say that they have to, as a pattern.
expected=
rpms()
{
	if [ -e /etc/debian_version ]; then
		set -- --force-debian "$@"
	fi
	rpm --dbpath /var/lib/rpm "$@" 2>rpm.err || { cat rpm.err; fail "rpm $*"; }
	# Scripts never fail a transaction: what went wrong in one is only said, among what systemd tells.
	if grep -v -E "^(Creat|Remov)(ed|ing) |^Suggested (user|group) ID 26 ${expected:+|$expected}" rpm.err; then
		fail "rpm $* complains"
	fi
}

sql()
{
	(cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 "$@")
}

# Everything on the system's disk, but what any system writes while it runs.
listing()
{
	find / -xdev \( -path "$here" -o -path /root -o -path /tmp -o -path /var/tmp -o -path /var/log \
		-o -path /var/lib/rpm -o -path /var/lib/systemd -o -path /var/cache/ldconfig \
		-o -path /etc/ld.so.cache -o -path /etc/.pwd.lock -o -path /etc/machine-id \
		-o -path '/etc/*passwd-' -o -path '/etc/*shadow-' -o -path '/etc/*group-' \) -prune \
		-o -printf '%p %y %m %u:%g %l\n' | sort
}

main_pid()
{
	systemctl show -p MainPID --value "$service"
}

files()
{
	mkdir "$1"
	cp -R "$data/base" "$data/global" "$1/"
}

reported()
{
	sql -d try -c "SELECT path || ' ' || encode(pagemap, 'hex') FROM ptrack_get_pagemapset('$since')"
}

# ---- install

listing >before.list
if [ -d earlier ]; then
	rpms -i earlier/*.rpm
	echo "ok: installed an earlier release"
else
	rpms -i packages/*.rpm
	echo "ok: installed"
fi

[ "$(stat -c %U:%G:%a "$data")" = postgres:postgres:700 ] || fail "$data is not postgres' alone"
[ "$(psql --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" = "$major" ] || fail "psql is not of $major"
[ "$(runuser -l postgres -c 'echo $PGDATA')" = "$data" ] || fail "the shells of postgres do not find $data"
if systemctl start "$service" 2>/dev/null; then
	fail "$service starts without a cluster"
fi
journalctl --sync
journalctl -q --no-pager -u "$service" | grep -q "$service-setup initdb" ||
	fail "the journal does not say what to do"
systemctl reset-failed "$service"
echo "ok: without a cluster the service says how to make one"

# ---- run

# with the locale of the system, and not that of who calls it
LC_ALL=C PGSETUP_INITDB_OPTIONS=--data-checksums "$service-setup" initdb ||
	{ cat "$home/$major/initdb.log"; fail "initdb"; }
cat >>"$data/postgresql.conf" <<END
shared_preload_libraries = 'ptrack'
ptrack.map_size = 1
autovacuum = off
END
systemctl enable --now "$service" || fail "$service does not start"
[ "$(stat -c %U "/proc/$(main_pid)")" = postgres ] || fail "the server does not run as postgres"
[ -S /run/postgresql/.s.PGSQL.5432 ] || fail "there is no socket in /run/postgresql"
[ "$(sql -c 'SHOW server_encoding')" = UTF8 ] || fail "the cluster is of the caller's locale"
echo "ok: $(sql -c 'SELECT version()')"

sql -c 'CREATE DATABASE try' -c 'CREATE DATABASE modules'
for name in $(sql -c 'SELECT name FROM pg_available_extensions ORDER BY 1'); do
	sql -d modules -c "SET client_min_messages = warning" \
		-c "CREATE EXTENSION IF NOT EXISTS \"$name\" CASCADE" || fail "CREATE EXTENSION $name"
done
echo "ok: CREATE EXTENSION of $(sql -d modules -c 'SELECT count(*) FROM pg_extension') modules"
for language in plperl plpython3u pltcl; do
	if [ "$(sql -d modules -c "SELECT count(*) FROM pg_language WHERE lanname = '$language'")" = 1 ]; then
		case $language in
			plperl) body='return 6 * 7;' ;;
			plpython3u) body='return 6 * 7' ;;
			pltcl) body='return [expr 6 * 7]' ;;
		esac
		sql -d modules -c "CREATE FUNCTION $language() RETURNS int LANGUAGE $language AS '$body'"
		[ "$(sql -d modules -c "SELECT $language()")" = 42 ] || fail "$language"
		echo "ok: $language"
	fi
done
if [ -e "/usr/pgsql-$major/lib/llvmjit.so" ]; then
	sql -d modules -c 'SET jit = on' -c 'SET jit_above_cost = 0' -c 'SET jit_inline_above_cost = 0' \
		-c 'EXPLAIN (ANALYZE) SELECT sum(n * 2) FROM generate_series(1, 1000) n' |
		grep -q 'Inlining true' || fail "queries are not compiled"
	echo "ok: queries are compiled"
fi

# ---- track

sql -d try -c 'CREATE EXTENSION ptrack' \
	-c "CREATE TABLE kept AS SELECT n, repeat('x', 80) AS filler FROM generate_series(1, 20000) n" \
	-c 'CREATE TABLE changed AS SELECT * FROM kept' \
	-c 'CREATE INDEX ON changed (n)' \
	-c 'VACUUM ANALYZE' -c 'CHECKPOINT' -c 'CHECKPOINT'
since=$(sql -d try -c 'SELECT redo_lsn FROM pg_control_checkpoint()')
files before
sql -d try -c 'UPDATE changed SET n = -n WHERE n % 1000 = 0' \
	-c "INSERT INTO changed SELECT n, 'new' FROM generate_series(1, 5000) n" \
	-c 'DELETE FROM changed WHERE n BETWEEN 5000 AND 5100' \
	-c 'CREATE TABLE later AS SELECT * FROM changed' \
	-c 'VACUUM changed' -c 'CHECKPOINT'
files after
reported >map
echo "ok: changed rows, and asked what changed since $since"

sql -d try -c 'UPDATE changed SET n = n + 1 WHERE n % 700 = 0' -c 'CHECKPOINT' \
	-c 'UPDATE changed SET n = n + 1 WHERE n % 900 = 0' -c 'CREATE TABLE last AS SELECT * FROM later'
systemctl kill --signal=KILL "$service"
for _ in 1 2 3 4 5 6 7 8 9 10; do
	systemctl is-failed --quiet "$service" && break
	sleep 1
done
systemctl start "$service" || fail "$service does not start after a crash"
sql -d try -c 'CHECKPOINT'
files crashed
reported >crashed.map
echo "ok: killed, and asked the same again"

valid=$(sql -d try -c 'SELECT ptrack_init_lsn()')
systemctl restart "$service" || fail "$service does not restart"
[ "$(sql -d try -c 'SELECT ptrack_init_lsn()')" = "$valid" ] || fail "the map was not kept at a restart"
systemctl reload "$service" || fail "$service does not reload"
echo "ok: a restart keeps the map"

# ---- upgrade

if [ -d earlier ]; then
	pid=$(main_pid)
	rpms -U packages/*.rpm
	for file in packages/*.rpm; do
		name=$(rpm --dbpath /var/lib/rpm -qp --nosignature --qf '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}' "$file")
		rpm --dbpath /var/lib/rpm -q "$name" >/dev/null ||
			fail "$file was not installed"
	done
	systemctl is-active --quiet "$service" || fail "the server does not run after the upgrade"
	[ "$(main_pid)" != "$pid" ] || fail "the server of before still runs"
	[ "$(sql -d try -c 'SELECT ptrack_init_lsn()')" = "$valid" ] || fail "the map did not survive the upgrade"
	sql -d try -c 'UPDATE changed SET n = n + 1 WHERE n % 300 = 0' -c 'CREATE TABLE newest AS SELECT * FROM last' \
		-c 'CHECKPOINT'
	files upgraded
	reported >upgraded.map
	echo "ok: upgraded as it ran; the map is kept, and tracked on"
fi

# the extension alone, laid down once more: the server keeps the file that it was started with, and that is said
expected="^note: the server of $data runs with the ptrack of before|^  systemctl restart $service"
rpms -U --replacepkgs packages/ptrack_"$major"-[0-9]*.rpm
grep -q "^  systemctl restart $service.service\$" rpm.err || fail "nothing is said of the library that the server has"
echo "ok: a server with the library of before is named"

# ---- erase, as it runs

pid=$(main_pid)
expected="^warning: the cluster in $data has ptrack in shared_preload_libraries|^start without ptrack_"
# shellcheck disable=SC2046
rpms -e $(rpm --dbpath /var/lib/rpm -qa)
grep -q "^start without ptrack_$major: take it out" rpm.err || fail "nothing is said of the cluster that needs ptrack"
[ -z "$(rpm --dbpath /var/lib/rpm -qa)" ] || fail "packages are left"
if systemctl is-active --quiet "$service" || [ -e "/proc/$pid" ]; then
	fail "the server still runs"
fi
[ -f "$data/PG_VERSION" ] || fail "the cluster went with the packages"
! systemctl cat "$service" >/dev/null 2>&1 || fail "systemd still knows $service"
rm -r "$home"
listing >after.list
diff before.list after.list || fail "the above is left behind"
echo "ok: erased, nothing but the cluster left behind"
