// Package drain waits until the volumes of a node that is being emptied are
// detached, so that the plugin that has to unmount them is the last to go.
//
// Two things end a node plugin's pod. A new version of it does: its volumes
// stay attached, their devices wait for the successor, and every second spent
// here would be a second of that pause. And a node that is being taken away
// does: its pods go too, and whoever unmounts their volumes must outlive them,
// or Kubernetes holds the volumes back from every other node for six minutes.
// The node object tells which it is: it is cordoned, or tainted by what removes
// nodes, or gone.
//
// The hook runs in the container that serves block devices. A page of 200
// attachments at a time keeps its memory small.
package drain
