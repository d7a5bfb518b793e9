package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
)

// What a node's mount options have to be, as docs/how-to/pool-on-nfs.md says.
const nfsOptions = "vers=4.2,hard,noatime"

// startServer starts the kernel's NFS server with the shortest lease there is,
// for the tests that wait for its end.
var startServer = sync.OnceValue(func() error {
	_, err := shell(context.Background(), `
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery
mount -t rpc_pipefs sunrpc /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
nfsdcld
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
`+nfsdUp+`
rpc.mountd -N 3`)
	return err
})

const exporter = "exportfs" //nolint:misspell // it is called so

const (
	nfsdUp   = "rpc.nfsd --no-udp -N 3 -V 4.2 4"
	nfsdDown = "rpc.nfsd 0"
)

// serverDisk mounts the machine's disk, which has the exports' filesystems.
var serverDisk = sync.OnceValue(func() error {
	_, err := shell(context.Background(), "mkfs.xfs -q -f "+disk+"; mkdir -p /srv/disk; mount "+disk+" /srv/disk")
	return err
})

// backing is a directory of the server, on a filesystem of its own.
type backing struct {
	dir string
	id  int
}

var backings int

// newBacking makes a filesystem in a file on the server's disk.
func newBacking(t *testing.T, fs string, size int64) *backing {
	t.Helper()
	must(t, serverDisk())
	backings++
	b := &backing{dir: fmt.Sprintf("/srv/export%d", backings), id: backings}
	file := fmt.Sprintf("/srv/disk/%d", b.id)
	sh(t, "truncate -s %d %s; mkfs.%s -q %s; mkdir -p %s; mount -o loop %s %s", size, file, fs, file, b.dir, file, b.dir)
	// A server holds on to it for a while after its last client.
	atEnd(t, "for i in $(seq 100); do ! umount %s 2>/dev/null || break; sleep 0.2; done; rm %s; ! mountpoint -q %s", b.dir, file, b.dir)
	return b
}

// export is one that nodes mount by NFS.
func export(t *testing.T, b *backing) *backing {
	t.Helper()
	must(t, startServer())
	sh(t, exporter+" -o rw,sync,no_subtree_check,no_root_squash,insecure,fsid=%d '*:%s'", b.id, b.dir)
	atEnd(t, "%[1]s -u '*:%[2]s'; %[1]s -f", exporter, b.dir)
	return b
}

// mount mounts the export from this machine, as a node does.
func (b *backing) mount(t *testing.T, options string) string {
	t.Helper()
	dir := fmt.Sprintf("/mnt/%d", b.id)
	sh(t, "mkdir -p %s; mount -t nfs4 -o %s 127.0.0.1:%s %s", dir, options, b.dir, dir)
	atEnd(t, "umount %s", dir)
	return dir
}

// client is a node's network, with an NFS client of its own in it.
type client struct{ name, server string }

// newClient makes a network namespace and its way to the server.
func newClient(t *testing.T, n int) client {
	t.Helper()
	c := client{fmt.Sprintf("c%d", n), fmt.Sprintf("10.0.%d.1", n)}
	sh(t, `mkdir -p /run/netns; ip netns add %[1]s; ip link add %[1]s type veth peer name e0 netns %[1]s
ip addr add %[2]s/24 dev %[1]s; ip link set %[1]s up
ip -n %[1]s addr add 10.0.%[3]d.2/24 dev e0; ip -n %[1]s link set e0 up; ip -n %[1]s link set lo up`, c.name, c.server, n)
	atEnd(t, "ip link del %[1]s; ip netns del %[1]s", c.name)
	return c
}

// mount mounts the export from there: the server sees another client.
func (c client) mount(t *testing.T, b *backing) string {
	t.Helper()
	dir := filepath.Join("/mnt", c.name)
	sh(t, `mkdir -p %[2]s
nsenter --net=/run/netns/%[1]s unshare --uts sh -euc 'hostname %[1]s; mount -t nfs4 -o %[3]s %[4]s:%[5]s %[2]s'`,
		c.name, dir, nfsOptions, c.server, b.dir)
	atEnd(t, "umount %s", dir)
	return dir
}

// cut takes the client's network away, and join gives it back.
func (c client) cut(t *testing.T)  { t.Helper(); sh(t, "ip link set %s down", c.name) }
func (c client) join(t *testing.T) { t.Helper(); sh(t, "ip link set %s up", c.name) }
