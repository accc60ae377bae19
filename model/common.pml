/*
 * common.pml
 *	  What the models share.
 *
 * Every rule of the protocol is on unless NO_<RULE> is defined.  Where a model
 * obeys a rule, a comment names the C function that does, and the mutation of
 * it that NO_<RULE> stands for:
 *
 *		RULE <NAME> <function> (<file>): <mutation>
 *
 * LSNs are small numbers.  A record takes one position; "ins" is the insert
 * position, where the next record will begin, "durable" the end of the WAL
 * that a crash does not take back.
 *
 * A crash sets "down".  What a process of the server does, step by step, is
 *
 *		BEGIN(guard) first step }; { further steps; last step: END } CRASHED(reset)
 *
 * so that it can stop for good between any two of its steps: while the server
 * is down no process takes one.  Replay begins when nobody is "busy" any more.
 */
bool down;
byte busy;

#define BEGIN(guard)	atomic { !down && (guard) -> busy++;
#define END				busy--
#define CRASHED(reset)	unless { atomic { down -> busy--; reset } }

#define RAISE(x, v)		x = ((v) > (x) -> (v) : (x))
#define LESSER(a, b)	((a) < (b) -> (a) : (b))

/* lost: the map says that a block has not changed since the backup's start, and it has */
#define lost(condition)		assert(!(condition))
/*
 * refused: a sound map of a cluster that never ran without it is thrown away, or
 * a sound parent is not served, or gets every block
 */
#define refused(condition)	assert(!(condition))
