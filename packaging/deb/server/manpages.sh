{#- postgresql-common keeps the manual pages of all versions in groups of alternatives, each a leader with
    followers: psql.1.gz for all, or (before 249, which knows no relink_postmaster_manpages) psql.1.gz for
    clients and postmaster.1.gz for servers. A page is in the same group for every version, or
    update-alternatives refuses it. 16 and later have no page postmaster. -#}
# man_pages PACKAGE...: the paths of their manual pages
man_pages() {
	dpkg -L "$@" 2>/dev/null | grep "^/usr/share/postgresql/{{ major }}/man/man[17]/.*\.gz$" | sort -u || true
}

# link_man_pages LEADER PATH PACKAGE...
link_man_pages() {
	leader=$1 path=$2
	shift 2
	[ -e "$path" ] || return 0
	followers=
	for page in $(man_pages "$@"); do
		name=${page##*/}
		[ "$name" = "$leader" ] && continue
		section=${page%/*}
		followers="$followers --slave /usr/share/man/${section##*/}/$name $name $page"
	done
	mkdir -p /usr/share/man/man1 /usr/share/man/man7
	update-alternatives --install "/usr/share/man/man1/$leader" "$leader" "$path" {{ major }}0 $followers ||
		echo "warning: the manual pages of PostgreSQL {{ major }} are not known to man" >&2
}

man=/usr/share/postgresql/{{ major }}/man/man1
server_leader=$man/postmaster.1.gz
[ -e $server_leader ] || server_leader=$man/postgres.1.gz
one_group() {
	grep -q relink_postmaster_manpages /usr/share/postgresql-common/maintscripts-functions 2>/dev/null
}
