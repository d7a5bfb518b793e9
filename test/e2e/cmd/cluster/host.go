package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	nodeName = "node1"
	nodeIP   = "10.89.0.1"
	poolDir  = "/var/lib/vhdx-csi-pool"
)

// mounts gives every path that the cluster writes a place of its own. /var/lib
// is an overlay, so that even the directories made in it are not the machine's.
func (in *inner) mounts(context.Context) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := dropForeign(); err != nil {
		return err
	}
	lib := filepath.Join(in.Scratch, "lib")
	work := filepath.Join(in.Scratch, "work")
	for _, d := range []string{lib, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	err := errors.Join(
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"),
		unix.Mount("overlay", "/var/lib", "overlay", 0, "lowerdir=/var/lib,upperdir="+lib+",workdir="+work),
		unix.Mount("tmpfs", "/var/log", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"),
	)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	for from, to := range map[string]string{
		filepath.Join(in.Scratch, "kubelet"):    "/var/lib/kubelet",
		filepath.Join(in.Scratch, "containerd"): "/var/lib/containerd", // an overlay cannot be the upper layer of one
		filepath.Join(in.Scratch, "state"):      "/var/lib/vhdx-csi",
		filepath.Join(in.Scratch, "pool"):       poolDir,
		filepath.Join(in.Logs, "pods"):          "/var/log/pods",
	} {
		if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(to, 0o755), unix.Mount(from, to, "", unix.MS_BIND, "")); err != nil {
			return fmt.Errorf("bind %s: %w", to, err)
		}
	}
	// For mountPropagation: Bidirectional. The namespace's parent is not a peer.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// dropForeign unmounts what was inherited and is served by somebody's process:
// a server that hangs would hang whoever looks at all mounts, and a mount that
// is held here could not end there.
func dropForeign() error {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if strings.HasPrefix(field[2], "fuse") || strings.HasPrefix(field[0], "/dev/loop") {
			_ = unix.Unmount(field[1], unix.MNT_DETACH) // below another one it went with it
		}
	}
	return nil
}

// network makes a host with one address. The Service "kubernetes" is a local
// address too, so that pods reach the apiserver without kube-proxy.
func (in *inner) network(ctx context.Context) error {
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	for _, args := range []string{
		"link set lo up",
		"addr add 10.96.0.1/32 dev lo",
		"link add node0 type bridge",
		"addr add " + nodeIP + "/24 dev node0",
		"link set node0 up",
	} {
		if err := in.run(ctx, "ip", strings.Fields(args)...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
}

// cgroups makes kubelet's cgroupRoot, which has to be there in every hierarchy.
func (in *inner) cgroups(context.Context) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	if len(roots) == 0 {
		return errors.New("no cgroups are mounted below /sys/fs/cgroup")
	}
	for _, root := range roots {
		dir := filepath.Join(root, in.Cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if filepath.Base(root) != "cpuset" {
			continue
		}
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // a child of v1 starts empty
			value, err := os.ReadFile(filepath.Join(root, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0o600)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// hasSysResource reports whether this process, and so a container of it, may have
// CAP_SYS_RESOURCE.
func hasSysResource() bool {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	return err == nil && has == 1
}
