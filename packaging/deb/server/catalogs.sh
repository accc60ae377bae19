{#- Clusters of the major with catalogs of another version (as between betas) need pg_upgrade, and that
    needs the programs that made them. postgresql-common's scripts keep these, too, but in /var/tmp, and 248 not where the
    version that it finds noted has the control file's behind it. -#}
controldata=/usr/lib/postgresql/{{ major }}/bin/pg_controldata
programs=/var/lib/{{ server }}

# other_catalogs: the clusters whose catalogs are not of this package's version, each with its own
other_catalogs() {
	[ -x $controldata ] && command -v pg_lsclusters >/dev/null || return 0
	pg_lsclusters -h | while read -r version cluster port status owner data log; do
		[ "$version" = {{ major }} ] || continue
		found=$(LC_ALL=C $controldata "$data" 2>/dev/null | awk -F ': *' '
			/^pg_control version number:/ { control = $2 }
			/^Catalog version number:/ { catalog = $2 }
			END { if (catalog) print catalog "-" control }')
		[ -n "$found" ] && [ "$found" != {{ catalog }}-{{ control }} ] || continue
		echo "$cluster $found"
	done
}
