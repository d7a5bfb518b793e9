// Package supervisor starts a worker process and puts another in its place as
// soon as it dies or hangs.
//
//	supervisor (PID 1, or systemd's child)
//	  |- listener: made once, inherited by every worker. In a gap clients wait in its queue.
//	  |- page:     a memfd for each worker: heartbeat, what it works on, whom to suspect
//	  '- worker:   this program again; it serves
//
// The worker's half is [Worker]: it says when it is ready, beats while it is
// alive, and names what it works on while that could kill it.
//
// # Death
//
// Three things end a worker's turn: it has exited; it is dying, which its main
// thread's state shows, though a thread that waits in the kernel may keep it
// from being reaped; or it has not beaten for Options.Heartbeat, and is killed.
// Nobody waits for a dead worker to be reaped. What it still has under way is
// its successor's business: locks on what both use are the barrier.
//
// # Backoff
//
// The successor comes at once, except when workers fail by themselves: the
// second failure in a row waits 10 ms, the next ones 100 ms, 1 s, and then
// always 5 s; 100 ms at most while there are culprits (below). A worker that is
// killed from outside (SIGKILL without an out-of-memory kill on the machine) has
// not failed; if it was not ready yet, its successor waits 10 ms, no more. Life as
// long as Options.Settle, or so long without a failure, ends the row.
//
// # Blame
//
// A worker that fails gives a strike to whatever it worked on ([Link.Blame]), or
// to that alone which it has accused ([Link.Accuse]). Who has a strike is a
// suspect, and [Link.Blame] lets a suspect run only by itself, so the next
// failure meets no bystander. With three strikes it is quarantined, until the
// supervisor gets SIGHUP or is started anew. The strikes of all others are
// forgotten when a worker has lived for Options.Settle.
//
// # Invariants
//
//	I-SUP-1  The worker dies with the supervisor. At most one worker has not been killed.
//	I-SUP-2  No worker is waited for: a successor starts when the last one is seen to die, or has been killed.
//	I-SUP-3  A worker's page is its own: what a dead one writes late changes nothing for its successor.
//	I-SUP-4  A client that connects while no worker is there is served by the next one.
//	I-SUP-5  Only a failure that happened while an id was blamed or accused gives it a strike, and at most one.
//	I-SUP-6  Whatever a worker writes into its page, the supervisor reads it without fault.
//	I-SUP-7  The supervisor does no I/O but on /proc, and never waits for a lock that a worker may hold.
package supervisor
