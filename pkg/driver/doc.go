// Package driver speaks CSI: it checks requests, calls the pools and the node
// manager, and turns their errors into gRPC codes. It keeps no state of its
// own beyond the calls that are running, knows nothing of VHDX, and touches
// neither the share nor a device.
//
// A call on its way:
//
//	socket -> limits (sizes of all fields) -> handler (checks, translates)
//	       -> inflight (one piece of work per volume, detached from the caller)
//	       -> pool or node -> errors (the one table) -> one log line -> socket
//
// Invariants:
//
//	I-DRV-1  Work that changes something runs to its end whatever becomes of the
//	         caller: it does not see the caller's deadline or cancellation.
//	I-DRV-2  At most one such piece of work runs per volume (per name, for
//	         creation). A call that meets one, or whose own deadline passes
//	         first, is answered Aborted, which no caller takes for final.
//	I-DRV-3  A final code is sent only after the work has ended.
//	I-DRV-4  Every gRPC code is chosen in errors.go. What is not in its table is
//	         Internal.
//	I-DRV-5  Every field of every request is bounded before a handler sees it.
//	I-DRV-6  Probe and the health service answer from memory: an outage of the
//	         share never looks like a dead plugin.
//	I-DRV-7  No secret and no credential reaches the log or an error message.
//	I-DRV-8  A capability is advertised if and only if its calls are implemented.
//	I-DRV-9  A change of a volume is read whole before any of it is made.
//	I-DRV-10 A health call answers within its own bounds, whatever hangs. What does
//	         not answer it is something wrong with the volume, never an error and
//	         never health.
package driver
