// Package node keeps what one node has staged: the attachment journal, the
// devices, the filesystems on them and their mounts.
package node
