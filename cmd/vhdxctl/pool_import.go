package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

const poolImportLong = `Make a volume of a VHDX file, as Hyper-V or QEMU left it. Nothing is copied: the
file becomes the volume's image, and loses the name it had. So it must be on the
filesystem of the pool's directory; vhdxctl convert copies it there.

The image must be sound and open nowhere. It counts as used and is never formatted.
Its size, block size and data stay as they are.

A differencing image (.avhdx) is imported with all that it stands on: name the
uppermost file. Its parents must be in its directory or below, or where --parents
says, and each the one that the file above was made of. They become the volume's
layers, in which nothing but the path to the parent is changed; the driver merges
them in the background. Other children of one of them, and children of FILE, would
lose their parent: while there are any in these directories, the import is refused.
Children elsewhere are not known.

A disk with a partition table can only be used as a raw block volume, or after the
partition has been copied out; a filesystem right on the disk (ext4, XFS, Btrfs)
can be mounted.

With --pv a PersistentVolume and a claim are printed, for kubectl apply. The
volume is kept when its claim is deleted (Retain); change that in the output.

An interrupted import can be repeated.`

func (a *app) poolImport(ctx context.Context, p *poolAccess) *cobra.Command {
	var imp pool.Import
	var pv manifest
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a volume of a VHDX file, or of a chain of them",
		Long:  poolImportLong,
		Example: `  vhdxctl pool import --pool /srv/vhdx /srv/incoming/data.vhdx
  vhdxctl pool import --pool /srv/vhdx --pv data --fs-type xfs /srv/incoming/data.vhdx | kubectl apply -f -
  vhdxctl pool import --pool /srv/vhdx --name data --parents /srv/incoming /srv/incoming/checkpoints/data_1F2E.avhdx
  vhdxctl convert /mnt/hyper-v/data.vhdx /srv/data.vhdx && vhdxctl pool import --pool /srv/vhdx /srv/data.vhdx`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			imp.File, imp.Parents = args[0], a.parents
			if imp.Name == "" {
				imp.Name = strings.TrimSuffix(filepath.Base(imp.File), filepath.Ext(imp.File))
			}
			if err := pv.check(imp.FSType); err != nil {
				return err
			}
			var v pool.Volume
			err := p.do(ctx, func(s *pool.Set) (err error) {
				v, err = s.Import(ctx, imp)
				return err
			})
			if err != nil {
				return err
			}
			if pv.Name != "" && !a.json {
				return pv.print(a.out, v)
			}
			r := volumeOf(v)
			a.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s: volume %s, %s, image %s", imp.File, r.ID, exactSize(r.Size), r.Image)
				if v.Layers > 0 {
					fmt.Fprintf(w, ", and %d below it", v.Layers)
				}
				fmt.Fprintln(w)
			})
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&imp.Name, "name", "", "the volume's name in the pool (default: the file's)")
	f.StringVar(&imp.FSType, "fs-type", "", "the filesystem on it: ext4, xfs or btrfs (default: found out by the first mount that names one)")
	f.Float64Var(&p.overcommit, "overcommit", 0, "that of the driver's --pool (default 1)")
	f.StringVar(&pv.Name, "pv", "", "print a PersistentVolume and a claim of this `name`")
	f.StringVar(&pv.Namespace, "namespace", "default", "of the claim")
	f.BoolVar(&pv.Block, "block", false, "a raw block volume")
	return cmd
}

// manifest is what the static PersistentVolume is made with.
type manifest struct {
	Name, Namespace string
	Block           bool
	FSType          string
	Volume          pool.Volume
}

func (m *manifest) check(fsType string) error {
	switch fsType {
	case "", "ext4", "xfs", "btrfs":
	default:
		return fmt.Errorf("--fs-type %s: there are ext4, xfs and btrfs", fsType)
	}
	for _, s := range []string{m.Name, m.Namespace} {
		if s != "" && !dnsName(s) {
			return fmt.Errorf("%q is no name of a Kubernetes object: up to 63 of a-z, 0-9 and, inside, \"-\"", s)
		}
	}
	m.FSType = fsType
	return nil
}

func dnsName(s string) bool {
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

func (m *manifest) print(w io.Writer, v pool.Volume) error {
	m.Volume = v
	return manifestYAML.Execute(w, m)
}

var manifestYAML = template.Must(template.New("").Parse(`apiVersion: v1
kind: PersistentVolume
metadata:
  name: {{.Name}}
spec:
  capacity:
    storage: "{{.Volume.Size}}"
  accessModes: [ReadWriteOnce]
  volumeMode: {{if .Block}}Block{{else}}Filesystem{{end}}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef:
    namespace: {{.Namespace}}
    name: {{.Name}}
  csi:
    driver: csi.vhdx.dev
    volumeHandle: {{.Volume.ID}}
{{- if and .FSType (not .Block)}}
    fsType: {{.FSType}}
{{- end}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{.Name}}
  namespace: {{.Namespace}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {{if .Block}}Block{{else}}Filesystem{{end}}
  storageClassName: ""
  volumeName: {{.Name}}
  resources:
    requests:
      storage: "{{.Volume.Size}}"
`))
