package pool

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// TestShare judges lines as /proc/self/mountinfo has them.
func TestShare(t *testing.T) {
	const (
		nfs4 = `612 29 0:58 / /pool rw,relatime shared:330 - nfs4 10.0.0.9:/export rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.5,local_lock=none,addr=10.0.0.9`
		nfs3 = `613 29 0:59 / /pool rw,relatime shared:331 - nfs 10.0.0.9:/export rw,vers=3,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=10.0.0.9,mountvers=3,mountport=20048,mountproto=udp,local_lock=none,addr=10.0.0.9`
		cifs = `614 29 0:60 / /pool rw,relatime shared:332 - cifs //nas/share rw,vers=3.1.1,cache=strict,upcall_target=app,username=k8s,uid=0,noforceuid,gid=0,noforcegid,addr=10.0.0.9,file_mode=0755,dir_mode=0755,hard,nounix,serverino,mapposix,rsize=4194304,wsize=4194304,bsize=1048576,retrans=1,echo_interval=60,actimeo=1,closetimeo=1`
		ceph = `615 29 0:61 / /pool rw,relatime shared:333 - ceph 10.0.0.9:6789:/ rw,name=k8s,secret=<hidden>,acl`
		ext4 = `616 29 254:0 / /pool rw,relatime shared:1 - ext4 /dev/vda rw,discard`
	)
	swap := strings.Replace
	for _, c := range []struct {
		what, line string
		recover    bool
		unsafe     []string
	}{
		{"NFS 4.2", nfs4, false, nil},
		{"NFS 4.0", swap(nfs4, "vers=4.2", "vers=4.0", 1), false, nil},
		{"NFS soft", swap(nfs4, "hard", "soft", 1), false, []string{"soft"}},
		{"NFS softerr", swap(nfs4, "hard", "softerr", 1), false, []string{"softerr"}},
		{"NFS local_lock=posix", swap(nfs4, "local_lock=none", "local_lock=posix", 1), false, []string{"local_lock=posix"}},
		{"NFS local_lock=flock", swap(nfs4, "local_lock=none", "local_lock=flock", 1), false, []string{"local_lock=flock"}},
		{"NFS recover_lost_locks", nfs4, true, []string{"nfs.recover_lost_locks=1"}},
		{"NFS 3", nfs3, false, []string{"vers=3"}},
		{"NFS 3 nolock", swap(swap(nfs3, "hard", "soft,nolock", 1), "local_lock=none", "local_lock=all", 1), false, []string{"vers=3", "soft", "nolock", "local_lock=all"}},
		{"NFS without version", swap(nfs3, "vers=3,", "", 1), false, []string{"no vers="}},
		{"SMB", cifs, false, nil},
		{"SMB soft", swap(cifs, "hard", "soft", 1), false, []string{"soft"}},
		{"SMB nobrl", swap(cifs, "serverino", "serverino,nobrl", 1), false, []string{"nobrl"}},
		{"SMB nostrictsync", swap(cifs, "serverino", "nostrictsync,serverino", 1), false, []string{"nostrictsync"}},
		{"SMB loose", swap(cifs, "cache=strict", "cache=loose", 1), false, []string{"cache=loose"}},
		{"SMB single client", swap(cifs, "cache=strict", "cache=singleclient", 1), false, []string{"cache=singleclient"}},
		{"smb3", swap(swap(cifs, "- cifs", "- smb3", 1), "hard", "soft,nobrl", 1), false, []string{"soft", "nobrl"}},
		{"CephFS", ceph, false, nil},
		{"CephFS that reconnects", ceph + ",recover_session=clean", false, []string{"recover_session=clean"}},
		{"9p loose", `617 29 0:62 / /pool rw,relatime - 9p host rw,cache=loose,access=client,trans=virtio`, false, []string{"cache=loose"}},
		{"ext4", ext4, false, nil},
		{"ext4 with the module parameter", ext4, true, nil},
		{"ext4 nobarrier", ext4 + ",nobarrier", false, []string{"nobarrier"}},
		{"btrfs", `618 29 0:63 /sub /pool rw,noatime - btrfs /dev/vdb rw,nobarrier,space_cache=v2,subvolid=256,subvol=/sub`, false, []string{"nobarrier"}},
		{"xfs", `619 29 253:1 / /pool rw,relatime - xfs /dev/vdb rw,attr2,inode64,logbufs=8,logbsize=32k,noquota`, false, nil},
		{"tmpfs", `620 29 0:64 / /pool rw,nosuid - tmpfs tmpfs rw,size=1024k`, false, nil},
		{"a path with blanks", swap(swap(nfs4, "/pool", `/my\040pool`, 1), "hard", "soft", 1), false, []string{"soft"}},
	} {
		m, err := fsx.FindMount(strings.NewReader("1 0 0:1 / / rw - rootfs none rw\n"+c.line+"\n"), func(i *mountinfo.Info) bool { return i.ID != 1 })
		if err != nil || m.FSType == "" {
			t.Fatalf("%s: %v", c.what, err)
		}
		checkJudgement(t, c.what, judge("/pool", m, c.recover), c.unsafe)
	}
	for magic, want := range map[int64][]string{0x6969: {"unknown mount"}, 0xfe534d42: {"unknown mount"}, 0xef53: nil} {
		checkJudgement(t, "a mount that is not in the table", judge("/pool", fsx.Mount{Magic: magic}, false), want)
	}
}

func checkJudgement(t *testing.T, what string, err error, want []string) {
	t.Helper()
	var got []string
	if err != nil {
		wantErr(t, what, err, ErrUnsafeShare, append([]string{"/pool"}, want...)...)
		e, ok := errors.AsType[*UnsafeShareError](err)
		if !ok {
			t.Fatalf("%s: no UnsafeShareError: %v", what, err)
		}
		for _, r := range e.Reasons {
			if r.Why == "" {
				t.Fatalf("%s: no reason for %s", what, r.Option)
			}
			got = append(got, r.Option)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// TestUnsafeMount has the kernel itself write the mount table.
func TestUnsafeMount(t *testing.T) {
	r := newPowerRig(t)
	image := filepath.Join(filepath.Dir(r.dir), "unsafe.img")
	sparse(t, image, 64<<20)
	run(t, "mkfs.ext4", "-q", "-F", image)
	dir := filepath.Join(filepath.Dir(r.dir), "un safe")
	unmount := r.mount(image, dir, "ext4")
	defer unmount()
	remount := func(options string) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, options); err != nil {
			t.Fatalf("remount with %s: %v", options, err)
		}
	}
	remount("nobarrier")
	_, err := Open(Options{Name: "p", Dir: dir})
	wantErr(t, "Open", err, ErrUnsafeShare, "ext4", "nobarrier", dir)
	p, err := Open(Options{Name: "p", Dir: dir, AllowUnsafe: true})
	if err != nil {
		t.Fatal(err)
	}
	if probs := p.problems(t.Context()); len(probs) != 1 || !strings.Contains(probs[0].Reason, "nobarrier") {
		t.Fatalf("Problems does not say that it is unsafe: %v", probs)
	}
	p.Close()
	remount("barrier")
	if p, err = Open(Options{Name: "p", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	p.Close()
}
