# Stands between a test process and its server (PostgreSQL or PgBouncer), and outlives the test process
# for as long as it takes to stop the server and to remove its directory.
#
# $1: the server's directory; $2: the directory of PostgreSQL's binaries, or of PgBouncer's.
# Standard input is a pipe from the test process: a line is an order, its end is the order to leave
# nothing behind. That end comes however the test process ends, SIGKILL included.
#
# It leads a process group, in which are the server's processes and what else is started here: what
# ends the test process (Ctrl-C, a closed terminal) does not reach it.

trap '' INT HUP TERM QUIT PIPE
# Whoever waits for the end of a pipe of the test process must not wait for this process.
exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
directory=$1
binaries=$2
runner=

# Tells the test process, in files, what runs and how it ended.
run() {
    "$@" >>"$directory/log" 2>&1 </dev/null &
    echo $! >"$directory/pid.new"
    mv "$directory/pid.new" "$directory/pid"
    wait $!
    echo $? >"$directory/exited.new"
    mv "$directory/exited.new" "$directory/exited"
}

while read -r order; do
    case $order in
        create)
            run "$binaries/initdb" --pgdata "$directory/data" --username postgres --auth trust \
                --encoding UTF8 --locale C --no-sync &
            ;;
        start)
            run "$binaries/postgres" -D "$directory/data" \
                -c config_file="$directory/postgresql.conf" \
                -c hba_file="$directory/pg_hba.conf" &
            ;;
        pool)
            run "$binaries/pgbouncer" "$directory/pgbouncer.ini" &
            ;;
    esac
    runner=$!
done

if [ -n "$runner" ]; then
    # Immediate shutdown; PgBouncer before 1.23 does not know QUIT, and takes TERM for it. A server
    # stopped by SIGSTOP has to be woken for it.
    kill -s QUIT 0
    kill -s TERM 0
    kill -s CONT 0
    (sleep 10; kill -s KILL "$(cat "$directory/pid")") &
    wait "$runner"
fi
rm -rf "$directory"
# Ends the sleep above, and this process.
kill -s KILL 0
