#!/bin/sh
# What verify-packages does in a clean container, as root, without network: one step a call.
#
#   steps.sh STEP
#
# In the environment: MAJOR; PREVIOUS, the major to come from, or nothing; PACKAGES and PREVIOUS_PACKAGES, the
# files to install; BEFORE, those of an earlier release of the same packages, or nothing; DEVELOPMENT, those for developers and debuggers; TARBALL, the extension's source as its source
# package has it; TRACKING, the test of the extension's package; PLAIN, where the distribution's own packages of
# the major lie, BESIDE, where those do that may stay beside ours, DOCUMENTATION, where its package of documents does;
# REPOSITORY, a repository of them, SOURCES, how apt
# is told of it, and SERVE, a server for it.
# What has to be remembered is in /var/tmp/verify.
set -eu
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
cd /
state=/var/tmp/verify
mkdir -p "$state"

fail() {
	echo "FAILED: $*" >&2
	exit 1
}

sql() {
	psql_cluster=$1 # a name that nobody else has: sh knows no variables of functions
	shift
	runuser -u postgres -- psql --cluster "$psql_cluster" -XAtq -v ON_ERROR_STOP=1 "$@"
}

status() {
	pg_lsclusters -h | awk -v v="$1" -v c="$2" '$1 == v && $2 == c { print $4 }'
}

# Where systemd runs, the server of a cluster is a unit of its own, and in this state.
unit() {
	[ -d /run/systemd/system ] || return 0
	is=$(systemctl is-active "postgresql@$MAJOR-$1") || :
	[ "$is" = "$2" ] || fail "postgresql@$MAJOR-$1 is $is"
}

install() {
	apt-get install -y --no-install-recommends "$@"
}

names() {
	for file; do
		dpkg-deb -f "$file" Package
	done
}

# All that is there, with type and mode, owner, and where links point to; then the sum of what is in each file. But
# for caches, logs of apt and dpkg, and what is mounted. What is in these files is left out, since it may differ:
#   /etc/ld.so.cache            made anew by any package's trigger
#   /var/lib/dpkg/status*       dpkg's books, written with each package; packages are compared by themselves
#   /var/lib/dpkg/available*    the same
#   /var/lib/dpkg/triggers/*    what waited for a trigger, of any package
#   /var/log/*                  what has happened
listing() {
	set -- "(" -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path "$state" -o -path /var/cache \
		-o -path /var/lib/apt -o -path /var/log/apt -o -path /var/log/dpkg.log -o -path /var/log/alternatives.log ")" -prune
	{
		find / -xdev "$@" -o -printf '%p %M %U:%G %l\n'
		find / -xdev "$@" -o -type f ! -path /etc/ld.so.cache ! -path '/var/lib/dpkg/status*' \
			! -path '/var/lib/dpkg/available*' ! -path '/var/lib/dpkg/triggers/*' ! -path '/var/log/*' \
			-exec sha256sum {} +
	} | sort
}

# Ours of which there is more to purge.
left() {
	dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^config-files //p'
}

# What there is, before anything of ours is installed; and that nothing else is there after all has been purged.
remember() {
	listing > "$state/before"
	dpkg-query -W -f '${Package} ${db:Status-Status}\n' > "$state/packages"
}

nothing_left() {
	dpkg-query -W -f '${Package} ${db:Status-Status}\n' | diff "$state/packages" - ||
		fail "packages are not as before"
	listing > "$state/after"
	diff "$state/before" "$state/after" > "$state/difference" || {
		cat "$state/difference"
		fail "files are not as before"
	}
}

# The build-id of a program or module, as gdb looks for its symbols.
build_id() {
	readelf -n "$1" | sed -n 's/^ *Build ID: //p'
}

# Packages of an earlier version: those of an earlier release, or else these, with `~before` behind their versions.
older() {
	rm -rf "$state/older"
	mkdir "$state/older"
	if [ -n "${BEFORE:-}" ]; then
		cp $BEFORE "$state/older"
		for file in $PACKAGES; do
			name=$(dpkg-deb -f "$file" Package)
			for old in "$state/older/${name}_"*; do
				[ -e "$old" ] || continue # of a package that has come since
				dpkg --compare-versions "$(dpkg-deb -f "$old" Version)" lt "$(dpkg-deb -f "$file" Version)" ||
					fail "${old##*/} is not earlier than ${file##*/}"
			done
		done
		return
	fi
	for file in $PACKAGES; do
		dpkg-deb -R "$file" "$state/tree"
		version=$(dpkg-deb -f "$file" Version)
		VERSION=$version perl -pi -e \
			's/^Version: \K\Q$ENV{VERSION}\E$/$ENV{VERSION}~before/; s/\(= \Q$ENV{VERSION}\E\)/(= $ENV{VERSION}~before)/g' \
			"$state/tree/DEBIAN/control"
		dpkg-deb -Znone -b "$state/tree" "$state/older" > /dev/null
		rm -rf "$state/tree"
	done
}

# Services are to be started as on a machine. Images of containers may forbid it, and without an init system it
# has to be allowed in so many words.
services() {
	printf '#!/bin/sh\nexit 0\n' > /usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
}

# The major's first cluster runs, on a server that is ours or not, with all that was put into it.
runs_on() {
	[ "$(status "$MAJOR" main)" = online ] || fail "$MAJOR/main does not run on $1"
	case $(sql "$MAJOR/main" -c 'SHOW server_version') in
	*+ptrack*) [ "$1" = ours ] || fail "the server is not the plain one" ;;
	*) [ "$1" = plain ] || fail "the server is not ours" ;;
	esac
	[ "$(sql "$MAJOR/main" -c 'SELECT count(*) FROM kept')" = "$2" ] || fail "rows are missing on $1"
}

# Our server is gone, and the major's first cluster is not.
kept() {
	[ ! -e "/usr/lib/postgresql/$MAJOR/bin/postgres" ] || fail "the server's program is still there"
	for file in "/etc/postgresql/$MAJOR/main/postgresql.conf" "/var/lib/postgresql/$MAJOR/main/PG_VERSION" \
		"/var/log/postgresql/postgresql-$MAJOR-main.log"; do
		[ -e "$file" ] || fail "$file was not kept, $1"
	done
}

# Files of a package.
files_of() {
	dpkg-deb --fsys-tarfile "$1" | tar -t | grep -v '/$' | sort
}

# The options with which apt knows of the plain server's packages at hand, and of no others, be they newer.
plain_alone() {
	for file in "$PLAIN"/*.deb; do
		dpkg-deb -f "$file"
		printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "${file##*/}" "$(stat -c %s "$file")" \
			"$(sha256sum "$file" | cut -d ' ' -f 1)"
	done > "$PLAIN/Packages"
	echo "deb [trusted=yes] file:$PLAIN ./" > "$state/plain.list"
	known="-o Dir::Etc::sourcelist=$state/plain.list -o Dir::Etc::sourceparts=-"
	apt-get $known update -o APT::Get::List-Cleanup=false
}

# The plain server takes the place of ours again, as documented: by two names.
back() {
	plain_alone
	apt-get $known install -y --no-install-recommends "postgresql-$MAJOR" "postgresql-client-$MAJOR"
	is=$(dpkg-query -W -f '${db:Status-Status}' "postgresql-client-${MAJOR}pt" 2> /dev/null) || :
	[ "$is" != installed ] || fail "our client stays with the plain server"
}

# Our server's first cluster gets the extension.
extension() {
	sql "$MAJOR/main" -c 'CREATE SCHEMA ptrack'
	pg_conftool "$MAJOR" main set ptrack.map_size 16MB
	pg_conftool "$MAJOR" main set shared_preload_libraries ptrack
	pg_ctlcluster "$MAJOR" main restart
	sql "$MAJOR/main" -c 'CREATE EXTENSION ptrack SCHEMA ptrack'
}

tracked() {
	pg_conftool "$MAJOR" main set shared_preload_libraries ptrack
	pg_ctlcluster "$MAJOR" main restart
	sql "$MAJOR/main" -c 'CHECKPOINT' -c 'SELECT ptrack.ptrack_init_lsn()'
}

case $1 in
install)
	services
	remember
	older
	install "$state"/older/*.deb
	for file in "$state"/older/*.deb; do
		name=$(dpkg-deb -f "$file" Package)
		[ "$(dpkg-query -W -f '${Version}' "$name")" = "$(dpkg-deb -f "$file" Version)" ] ||
			fail "$name is not of the earlier version"
	done
	[ "$(status "$MAJOR" main)" = online ] || fail "no cluster $MAJOR/main was made and started"
	[ "$(sql "$MAJOR/main" -c 'SELECT 1')" = 1 ] || fail "$MAJOR/main does not answer"
	unit main active
	;;
track)
	"$TRACKING" create
	"$TRACKING" track
	unit ptrackcheck active
	;;
upgrade)
	since=$(sql "$MAJOR/ptrackcheck" -c 'SELECT ptrack.ptrack_init_lsn()')
	rows=$(sql "$MAJOR/ptrackcheck" -c 'SELECT count(*) FROM heap')
	began=$(sql "$MAJOR/ptrackcheck" -c 'SELECT pg_postmaster_start_time()')
	# the extension alone: the server runs on with what it was started with, and that is said; a second later, since
	# the times that are compared are in whole ones
	sleep 1
	for file in $PACKAGES; do
		case ${file##*/} in "postgresql-$MAJOR-ptrack_"*) ;; *) continue ;; esac
		# that of another release may ask for a later server than there is
		if [ -n "${BEFORE:-}" ] && ! apt-get install -s --no-install-recommends "$file" > "$state/said" 2>&1; then
			echo "left out: the extension alone, which the earlier release's server does not do for"
			continue
		fi
		install "$file" > "$state/said" 2>&1 || { cat "$state/said"; fail "no $file"; }
		cat "$state/said"
		grep -q "note: cluster $MAJOR/ptrackcheck runs with the ptrack of before" "$state/said" ||
			fail "nothing was said of the library that the server still has"
		[ "$(sql "$MAJOR/ptrackcheck" -c 'SELECT pg_postmaster_start_time()')" = "$began" ] ||
			fail "the extension's package restarted the server"
	done
	install $PACKAGES
	for file in $PACKAGES; do
		name=$(dpkg-deb -f "$file" Package)
		[ "$(dpkg-query -W -f '${Version}' "$name")" = "$(dpkg-deb -f "$file" Version)" ] ||
			fail "$name was not upgraded"
	done
	[ "$(status "$MAJOR" ptrackcheck)" = online ] || fail "$MAJOR/ptrackcheck does not run any more"
	[ "$(sql "$MAJOR/ptrackcheck" -c 'SELECT pg_postmaster_start_time()')" != "$began" ] ||
		fail "the old server still runs"
	[ "$(sql "$MAJOR/ptrackcheck" -c 'SELECT count(*) FROM heap')" = "$rows" ] || fail "rows are missing"
	[ "$(sql "$MAJOR/ptrackcheck" -c 'SELECT ptrack.ptrack_init_lsn()')" = "$since" ] ||
		fail "the map did not survive the upgrade"
	unit main active
	unit ptrackcheck active
	"$TRACKING" track
	;;
stay)
	# What apt would do with a plain server at hand that is newer than ours, whatever the release itself has: when all
	# is upgraded, and for a package that wants one. Nothing is changed, nor downloaded.
	later=$state/later
	rm -rf "$later"
	mkdir -p "$later/sources"
	plain=$(names $PACKAGES | sed -n "s/${MAJOR}pt\$/$MAJOR/p")
	for name in $plain "wants-postgresql-$MAJOR"; do
		wanted=
		[ "$name" != "wants-postgresql-$MAJOR" ] || wanted="Depends: postgresql-$MAJOR (>= $MAJOR~~)" # betas, too
		printf '%s\n' "Package: $name" 'Version: 999' 'Architecture: all' 'Maintainer: nobody' ${wanted:+"$wanted"} \
			"Filename: ./$name.deb" 'Size: 1' "SHA256: $(printf %064d 0)" 'Description: none' ''
	done > "$later/Packages"
	[ ! -d /etc/apt/sources.list.d ] || cp -R /etc/apt/sources.list.d/. "$later/sources"
	echo "deb [trusted=yes] file:$later ./" > "$later/sources/later.list"
	apt-get update -o Dir::Etc::sourcelist="$later/sources/later.list" -o Dir::Etc::sourceparts=- \
		-o APT::Get::List-Cleanup=false
	known="-o Dir::Etc::sourceparts=$later/sources"
	apt-cache $known policy "postgresql-$MAJOR" | grep -q 'Candidate: 999' || fail "apt does not know the plain server"
	for how in upgrade dist-upgrade "install wants-postgresql-$MAJOR"; do
		apt-get -s $known $how > "$state/said" || fail "apt-get $how cannot be done"
		for name in $plain; do
			swapped=$(grep -E "^(Inst $name|Remv ${name}pt) " "$state/said") || continue
			fail "apt-get $how swaps servers:" $swapped
		done
	done
	rm -rf "$later"
	;;
upgradecluster)
	install $PREVIOUS_PACKAGES
	# with what initdb of the old major has by default, too, which is no checksums before 18, and checksums since
	for way in "dump checked" "dump default" "upgrade checked" "upgrade default"; do
		method=${way% *}
		checksums=--data-checksums
		[ "${way#* }" = checked ] || checksums=
		if [ "$way" = "upgrade default" ] && [ "$PREVIOUS" -lt 18 ] && [ "$MAJOR" -ge 18 ] &&
			! grep -q -e --no-data-checksums "$(command -v pg_upgradecluster)"; then
			echo "left out: -m upgrade of a cluster without checksums. The release's pg_upgradecluster gives the new one"
			echo "what initdb of $MAJOR has by default, which is checksums, and pg_upgrade wants both to be the same."
			continue
		fi
		cluster=from$method${way#* }
		pg_createcluster "$PREVIOUS" "$cluster" ${checksums:+-- "$checksums"}
		pg_conftool "$PREVIOUS" "$cluster" set shared_preload_libraries ptrack
		pg_conftool "$PREVIOUS" "$cluster" set ptrack.map_size 16MB
		pg_ctlcluster "$PREVIOUS" "$cluster" start
		sql "$PREVIOUS/$cluster" -c 'CREATE SCHEMA ptrack' -c 'CREATE EXTENSION ptrack SCHEMA ptrack' \
			-c 'CREATE TABLE kept AS SELECT n FROM generate_series(1, 1000) n'
		pg_upgradecluster -v "$MAJOR" -m "$method" "$PREVIOUS" "$cluster"
		[ "$(status "$MAJOR" "$cluster")" = online ] || fail "-m $way: the new cluster does not run"
		[ "$(sql "$MAJOR/$cluster" -c 'SELECT sum(n) FROM kept')" = 500500 ] || fail "-m $way: rows are missing"
		sql "$MAJOR/$cluster" -c CHECKPOINT
		[ "$(sql "$MAJOR/$cluster" -c "SELECT ptrack.ptrack_init_lsn() <> '0/0'")" = t ] ||
			fail "-m $way: the new cluster is not tracked"
		pg_dropcluster --stop "$PREVIOUS" "$cluster"
		pg_dropcluster --stop "$MAJOR" "$cluster"
	done
	# what pg_upgradecluster writes down stays, with any packages
	rm -rf /var/log/postgresql/pg_upgradecluster-*
	;;
remove)
	apt-get remove -y $(names $PACKAGES $PREVIOUS_PACKAGES)
	[ ! -e "/usr/lib/postgresql/$MAJOR/bin/postgres" ] || fail "the server's program is still there"
	for cluster in main ptrackcheck; do
		[ -e "/var/lib/postgresql/$MAJOR/$cluster/PG_VERSION" ] || fail "$MAJOR/$cluster was not kept"
		[ ! -e "/var/lib/postgresql/$MAJOR/$cluster/postmaster.pid" ] || fail "$MAJOR/$cluster was not stopped"
		unit "$cluster" inactive
	done
	;;
purge)
	# Of packages without files of configuration nothing is known any more.
	apt-get purge -y $(left)
	nothing_left
	;;
repo)
	# In a container of its own, with nothing of ours but the repository, which is used as `repo` says.
	services
	server=$(perl "$SERVE" "$REPOSITORY")
	trap 'kill "${server#* }" || true' EXIT
	url=http://127.0.0.1:${server% *}
	echo 'Acquire::http::Proxy::127.0.0.1 "DIRECT";' > /etc/apt/apt.conf.d/99verify
	mkdir -p /etc/apt/keyrings
	/usr/lib/apt/apt-helper download-file "$url/ptrack.asc" /etc/apt/keyrings/ptrack.asc
	chmod 644 /etc/apt/keyrings/ptrack.asc
	sed "s|URL|$url|" "$SOURCES" > /etc/apt/sources.list.d/ptrack.sources
	# The distribution cannot be asked again; what apt knows of its packages stays, the plain server among them.
	apt-get update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/ptrack.sources -o Dir::Etc::sourceparts=- \
		-o APT::Get::List-Cleanup=false -o APT::Update::Error-Mode=any
	install "postgresql-$MAJOR-ptrack"
	for name in "postgresql-${MAJOR}pt" "postgresql-$MAJOR-ptrack"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$name")" = installed ] || fail "$name was not installed"
	done
	[ "$(status "$MAJOR" main)" = online ] || fail "no cluster $MAJOR/main was made and started"
	extension
	[ "$(sql "$MAJOR/main" -c "SELECT ptrack.ptrack_init_lsn() <> '0/0'")" = t ] || fail "nothing is tracked"
	;;
develop)
	# In a container of its own, with what developers and debuggers have: compilers and make among it.
	services
	# the plain server's documentation, where the release has it, is beside ours, and no file of it is in ours
	for file in "$DOCUMENTATION"/*.deb; do
		[ ! -e "$file" ] || install "$file"
	done
	remember
	install $PACKAGES $DEVELOPMENT
	lib=/usr/lib/postgresql/$MAJOR/lib
	for file in "/usr/lib/postgresql/$MAJOR/bin/postgres" "/usr/lib/postgresql/$MAJOR/bin/psql" "$lib/ptrack.so"; do
		id=$(build_id "$file")
		[ -n "$id" ] || fail "$file has no build-id"
		symbols=/usr/lib/debug/.build-id/$(echo "$id" | cut -c 1-2)/$(echo "$id" | cut -c 3-).debug
		[ -e "$symbols" ] || fail "the symbols of $file are not installed"
		[ "$(build_id "$symbols")" = "$id" ] || fail "$symbols are those of another build"
		readelf -S "$symbols" | grep -q '\.debug_info' || fail "$symbols has no symbols"
	done
	# the extension as anybody compiles one, over that of the package
	mkdir "$state/source"
	tar -x -C "$state/source" --strip-components=1 -f "$TARBALL"
	cp "$lib/ptrack.so" "$state/packaged.so"
	make -C "$state/source" PG_CONFIG="/usr/lib/postgresql/$MAJOR/bin/pg_config"
	make -C "$state/source" PG_CONFIG="/usr/lib/postgresql/$MAJOR/bin/pg_config" install
	! cmp -s "$lib/ptrack.so" "$state/packaged.so" || fail "what was compiled was not installed in $lib"
	extension
	[ "$(sql "$MAJOR/main" -c "SELECT ptrack.ptrack_init_lsn() <> '0/0'")" = t ] || fail "what was compiled tracks nothing"
	# a program of libpq, which as a package depends on the client that has this one
	client=$state/client
	pg_config=/usr/lib/postgresql/$MAJOR/bin/pg_config
	mkdir -p "$client/debian"
	printf '%s\n' 'Source: client' '' 'Package: client' 'Architecture: any' > "$client/debian/control"
	echo "#include <libpq-fe.h>
int main(void) { return PQlibVersion() / 10000 != $MAJOR; }" > "$client/client.c"
	gcc -o "$client/client" "$client/client.c" -I"$($pg_config --includedir)" -L"$($pg_config --libdir)" \
		-Wl,-rpath,"$($pg_config --libdir)" -lpq
	"$client/client" || fail "what was compiled finds another libpq"
	(cd "$client" && dpkg-shlibdeps -O ./client) > "$state/said" || fail "dpkg-shlibdeps knows no package of libpq"
	cat "$state/said"
	grep -q "postgresql-client-${MAJOR}pt (>= $MAJOR" "$state/said" || fail "a program of libpq depends on another one"
	apt-get remove -y $(names $PACKAGES $DEVELOPMENT)
	[ ! -e "/usr/include/postgresql/$MAJOR" ] || fail "headers are still there"
	apt-get purge -y $(left)
	nothing_left
	;;
boot)
	# On a system of its own, which has booted: the steps that need no other major.
	[ -d /run/systemd/system ] || fail "systemd does not run"
	for each in install track upgrade remove purge; do
		PREVIOUS_PACKAGES= sh "$0" "$each"
	done
	known=$(systemctl list-units --all --plain --no-legend "postgresql@$MAJOR-*")
	[ -z "$known" ] || fail "systemd still knows $known"
	;;
swap)
	# In a container of its own, with the plain server's packages at hand.
	services
	# what the plain server goes without, apt leaves installed: no file of it may be ours
	for file in "$BESIDE"/*.deb; do
		[ -e "$file" ] || continue
		files_of "$file" > "$state/theirs"
		for own in $PACKAGES; do
			files_of "$own" > "$state/own"
			shared=$(comm -12 "$state/theirs" "$state/own" | head -n 1)
			[ -z "$shared" ] || fail "${own##*/} and ${file##*/} have $shared"
		done
	done
	install "$PLAIN"/*.deb
	sql "$MAJOR/main" -c 'CREATE TABLE kept AS SELECT n FROM generate_series(1, 1000) n'
	runs_on plain 1000
	# Who says nothing keeps the plain server, and is told what is between the two.
	set +e
	apt-get install --assume-no --no-install-recommends $PACKAGES > "$state/said"
	dpkg --dry-run --install $PACKAGES > "$state/conflicts" 2>&1
	set -e
	sed -En '/REMOV(ED|ING):/,/^[^ ]/p' "$state/said" | grep -qw "postgresql-$MAJOR" ||
		fail "apt does not say that it removes postgresql-$MAJOR"
	grep -Eq "${MAJOR}pt conflicts with postgresql-|removing postgresql-\S+ in favour of postgresql-" "$state/conflicts" ||
		{ cat "$state/conflicts" >&2; fail "dpkg does not name what is between the two"; }
	runs_on plain 1000
	# Purged in the same run, the plain server would take the cluster along: refused, and that is said; apt shows what
	# scripts say, on whichever stream.
	! install --purge $PACKAGES > "$state/said" 2>&1 || { cat "$state/said"; fail "--purge is not refused"; }
	cat "$state/said"
	grep -q "error: postgresql-$MAJOR is to be purged in the same run" "$state/said" || fail "--purge failed otherwise"
	[ -e "/etc/postgresql/$MAJOR/main/postgresql.conf" ] && [ -e "/var/lib/postgresql/$MAJOR/main/PG_VERSION" ] ||
		fail "--purge was refused, and $MAJOR/main is gone"
	# As the error says: what is unpacked without its server is out of the way first, or apt takes no files.
	grep -q 'apt --fix-broken install' "$state/said" || fail "nothing is said of what is unpacked"
	plain_alone
	apt-get $known --fix-broken install -y --no-install-recommends
	install $PACKAGES > "$state/said" 2>&1 || { cat "$state/said"; fail "ours could not be installed"; }
	cat "$state/said"
	grep -q "note: do not purge postgresql-$MAJOR now" "$state/said" || fail "nothing was said of purging"
	# what it says to read is among the package's files, also where dpkg leaves documents out
	named=$(tr -d '\r' < "$state/said" | sed -n 's|.*; see \(/usr/share/doc/[^ ]*\).*|\1|p')
	dpkg-query -L "postgresql-${MAJOR}pt" | grep -qxF "$named" || fail "there is no ${named:-file named}"
	runs_on ours 1000
	extension
	first=$(tracked)
	# back, with what the documentation says, and something written meanwhile
	pg_conftool "$MAJOR" main remove shared_preload_libraries
	back
	runs_on plain 1000
	sql "$MAJOR/main" -c 'INSERT INTO kept SELECT n FROM generate_series(1001, 2000) n' -c CHECKPOINT
	[ -e "$(sql "$MAJOR/main" -c 'SHOW data_directory')/global/ptrack.map" ] || fail "the map was not left behind"
	# forth again: what the plain server did is in no map, so the old one must not be trusted
	install $PACKAGES
	runs_on ours 2000
	again=$(tracked)
	[ "$(sql "$MAJOR/main" -c "SELECT '$again'::pg_lsn > '$first'")" = t ] || fail "the old map is trusted ($first, $again)"
	grep -q 'ptrack init: map file .* does not know all that has happened' \
		"/var/log/postgresql/postgresql-$MAJOR-main.log" || fail "the log does not say why the map was refused"
	# back for good: what ours has left is purged, and the plain server's cluster is not
	pg_conftool "$MAJOR" main remove shared_preload_libraries
	back
	runs_on plain 2000
	left | grep -qx "postgresql-${MAJOR}pt" || fail "nothing of ours is left to be purged"
	apt-get purge -y $(left)
	runs_on plain 2000
	# so is not one that the plain server had, and drops when it is purged itself
	install $PACKAGES
	runs_on ours 2000
	apt-get purge -y $(names $PACKAGES)
	kept "though postgresql-$MAJOR has not been purged"
	# where no other server has the cluster, it is kept by an answer given beforehand; the plain one is got rid of as
	# documented
	install $PACKAGES
	runs_on ours 2000
	rm "/var/lib/dpkg/info/postgresql-$MAJOR.postrm"
	dpkg --purge "postgresql-$MAJOR"
	runs_on ours 2000
	echo "postgresql-${MAJOR}pt postgresql-${MAJOR}pt/postrm_purge_data boolean false" | debconf-set-selections
	apt-get purge -y $(names $PACKAGES)
	kept "though that was answered"
	install "$PLAIN"/*.deb
	runs_on plain 2000
	;;
*)
	fail "what is $1?"
	;;
esac
