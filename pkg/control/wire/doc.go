// Package wire carries the calls of package control over gRPC with mutual TLS.
//
// Every process has a key in memory and a certificate that it signs itself. The
// pools say whose certificates count: nobody else does, no authority signs
// anything, and no name in a certificate means anything. A node accepts a
// connection from a controller that any of its pools names, and a call if the
// volume's own pool names it. A controller accepts the certificates that the
// volume's pool has in the node's record.
//
// A message is one JSON object. There is no protocol compiler: the five calls
// are in messages.go. The service's name has the version that changes when old
// and new cannot understand each other; a message's own version grows when a
// field is added that must not be overlooked, and its reader refuses what is
// newer than itself.
package wire
