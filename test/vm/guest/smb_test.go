package guest

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// What docs/how-to/pool-on-smb.md says, with the credentials of startSMB.
const (
	smbOptions = "vers=3.1.1,hard,uid=65532,gid=65532,dir_mode=0770,file_mode=0660"
	smbUser    = ",username=root,password=pw"
)

// startSMB starts the kernel's SMB server. Its shares are in the directory of
// all exports.
var startSMB = sync.OnceValue(func() error {
	_, err := shell(context.Background(), `
mkdir -p /run/ksmbd
printf '[global]\n\tnetbios name = VM\n\tworkgroup = W\n\tmap to guest = never\n\n[srv]\n\tpath = /srv\n\tread only = no\n\tforce user = root\n' >/etc/ksmbd/ksmbd.conf
ksmbd.adduser -a root -p pw
ksmbd.mountd
for i in $(seq 50); do ! grep -q ':01BD ' /proc/net/tcp /proc/net/tcp6 || break; sleep 0.2; done`)
	return err
})

// mountSMB mounts a directory of the server by SMB.
func (b *backing) mountSMB(t *testing.T, options string) string {
	t.Helper()
	must(t, startSMB())
	dir := fmt.Sprintf("/mnt/smb%d", b.id)
	sh(t, "mkdir -p %s; mount -t cifs -o %s%s //127.0.0.1%s %s", dir, options, smbUser, b.dir, dir)
	atEnd(t, "umount %s", dir)
	return dir
}

// TestRefuseSMB mounts a share with options that can lose data.
func TestRefuseSMB(t *testing.T) {
	b := newBacking(t, "ext4", 256*mib)
	for _, c := range []struct{ options, refused string }{
		{smbOptions, ""},
		{"vers=3.1.1,hard,cache=none", ""},
		{"vers=3.1.1", "soft"}, // the default
		{"vers=3.1.1,hard,nobrl", "nobrl"},
		{"vers=3.1.1,hard,nostrictsync", "nostrictsync"},
		{"vers=3.1.1,hard,cache=loose", "cache=loose"},
		{"vers=3.1.1,hard,cache=ro", "cache=ro"},
		{"vers=3.1.1,hard,cache=singleclient", "cache=singleclient"},
	} {
		t.Run(c.options, func(t *testing.T) { opens(t, b.mountSMB(t, c.options), c.refused) })
	}
}
