package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suite is that of the plugin's image: its tools are the ones that are tested.
const suite = "bookworm"

// packages are the plugin's tools, the file servers, and a small userland.
var packages = []string{
	"base-files", "bash", "dash", "coreutils", "findutils", "grep", "mawk", "sed", "hostname", "kmod", "netbase", "procps",
	"mount", "util-linux", "fdisk", "e2fsprogs", "xfsprogs", "btrfs-progs",
	"iproute2", "nfs-common", "nfs-kernel-server", "cifs-utils", "ksmbd-tools",
}

// prepared is what packages that are only unpacked lack. Their scripts have not
// run. vm-init is replaced by this program, which is newer than the image.
const prepared = `cd "$1"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nstatd:x:102:65534::/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
echo '127.0.0.1 localhost vm' >etc/hosts
: >etc/exports
mkdir -p etc/ksmbd srv mnt media proc sys run tmp var root out bins
[ -e bin/sh ] || ln -s dash bin/sh
[ -e usr/bin/awk ] || ln -s mawk usr/bin/awk
printf '#!/bin/sh\nmount -t hostfs -o "$VM_BIN" none /bins\nexec /bins/vm\n' >sbin/vm-init
chmod +x sbin/vm-init
rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/perl var/cache/apt var/lib/apt`

// rootImage makes the guest's root filesystem, and gives the file. It is kept
// until the recipe changes.
func rootImage(ctx context.Context, dir string) (_ string, err error) {
	sum := sha256.Sum256([]byte(suite + strings.Join(packages, ",") + prepared))
	file := filepath.Join(dir, fmt.Sprintf("root-%x.img", sum[:6]))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if os.Geteuid() != 0 {
		return "", errors.New("needs root, once")
	}
	scratch, err := os.MkdirTemp("/dev/shm", "vhdx-vm-root-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	tree, part := filepath.Join(scratch, "tree"), file+".part"
	for _, c := range [][]string{
		// In namespaces of their own: what is left mounted or running by a kill ends with them.
		{"unshare", "--mount", "--propagation", "private", "--kill-child", "--fork", "--pid", "--mount-proc",
			"mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--include=" + strings.Join(packages, ","), suite, tree},
		{"sh", "-euc", prepared, "sh", tree},
		{"rm", "-f", part},
		{"mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, part, "400M"},
		{"mv", part, file},
	} {
		cmd := exec.CommandContext(ctx, c[0], c[1:]...)
		cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", c[0], err, out)
		}
	}
	return file, nil
}
