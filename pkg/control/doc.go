// Package control is how the controller asks the node that has a volume open.
// What an open image needs done, only its holder can do: rotate its head for a
// snapshot, freeze its filesystem, follow a record that has changed. [Holder] is
// the contract, [Router] finds the holder, and package wire carries the calls
// over the network, where controller and node are different processes.
//
//	driver -> Router -> *node.Manager            mode all
//	                 -> wire.Client == TLS == wire.Server -> *node.Manager
//
// Invariants:
//
//	I-CTL-1  A peer acts only on volumes of a pool that names its certificate.
//	         Each call is checked against the volume's own pool, not only the
//	         connection: who may write one pool gets nothing of another.
//	I-CTL-2  A private key exists in the memory of one process. What is in the
//	         pool lets nobody be somebody else.
//	I-CTL-3  An answer that did not come is [ErrUnreachable], never a guess: the
//	         call may have happened.
//	I-CTL-4  Every call can be repeated, with the same result. So a caller that
//	         got ErrUnreachable asks again.
//	I-CTL-5  Work at a node runs to its end whatever becomes of its caller.
//	I-CTL-6  What comes from the network or the share is bounded and strictly
//	         decoded. A stranger costs a handshake.
//	I-CTL-7  Nothing here keeps a volume from being served.
package control
