#!/usr/bin/perl
# serve.pl FOLDER: serve the files of a folder on the loopback, from the background. Prints port and process.
# With nothing but perl, which all systems of dpkg have, and just what apt asks for.
use strict;
use warnings;
use IO::Socket::INET;

my $folder = shift // die "serve.pl FOLDER\n";
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 16) or die "no socket: $@\n";
$| = 1;
my $child = fork // die "no process: $!\n";
if ($child) {
	print $server->sockport, " $child\n";
	exit;
}
open STDIN, '<', '/dev/null';
open STDOUT, '>', '/dev/null';    # whoever waits for the end of our output waits for the parent's
open STDERR, '>', '/dev/null';
$SIG{PIPE} = 'IGNORE';
while (my $client = $server->accept) {
	my $request = <$client> // '';
	while (defined(my $line = <$client>)) { last if $line =~ /^\r?$/ }
	my ($method, $path) = $request =~ m{^(GET|HEAD) (/[^\s?]*)};
	$path =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge if defined $path;
	my $file;
	if (defined $path && $path !~ m{/\.\.(/|$)} && -f "$folder$path" && open $file, '<:raw', "$folder$path") {
		printf $client "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n", -s $file;
		local $/ = \65536;
		if ($method eq 'GET') { print $client $_ while <$file> }
	}
	else {
		print $client "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n";
	}
	close $client;
}
