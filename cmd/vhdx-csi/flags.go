package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// options are the flags of the plugin.
type options struct {
	mode            string
	endpoint        string
	nodeID          string
	pools           []string
	stateDir        string
	backend         string
	allowDeviceLoss bool
	keeperSocket    string
	keeperGiven     bool // the keeper is somebody else's to start
	maxVolumes      int64
	memoryLimit     string
	metricsAddress  string
	otlpEndpoint    string

	controlAddress   string
	controlAdvertise string

	events          string
	hangTimeout     time.Duration
	workTimeout     time.Duration
	shutdownTimeout time.Duration
}

// The modes.
const (
	modeAll        = "all"
	modeController = "controller"
	modeNode       = "node"
)

// The values of --events.
const (
	eventsAuto = "auto"
	eventsOn   = "on"
	eventsOff  = "off"
)

// minHangTimeout leaves a worker on a busy machine the time to beat.
const minHangTimeout = 500 * time.Millisecond

const (
	defaultEndpoint = "unix:///run/vhdx-csi/csi.sock"
	defaultStateDir = "/var/lib/vhdx-csi"
	defaultPool     = "default"
)

func (o *options) controller() bool { return o.mode != modeNode }
func (o *options) node() bool       { return o.mode != modeController }

// nodeStateDir is where the node service keeps what it has staged.
func (o *options) nodeStateDir() string { return filepath.Join(o.stateDir, "node") }

// errUsage: the command line is wrong, and the user has been told.
var errUsage = errors.New("wrong usage")

const long = `vhdx-csi is a CSI plugin. Volumes are VHDX files in shared directories, called
pools; the plugin itself serves them to its node as block devices.

--mode=controller creates, deletes and grows volumes, --mode=node mounts them,
--mode=all does both in one process, for one machine or for tests.`

const examples = `  # One machine: a pool in /var/lib/vhdx-csi/pool, the socket in /run/vhdx-csi
  vhdx-csi

  # The node plugin of a cluster, with two shares
  vhdx-csi --mode=node --endpoint=unix:///csi/csi.sock --node-id="$NODE_NAME" \
    --pool=default=/mnt/nfs/vhdx --pool=fast=/mnt/cephfs/vhdx

  # Its controller: promise twice what there is, keep 10 GiB free
  vhdx-csi --mode=controller --endpoint=unix:///csi/csi.sock \
    --pool=default=/mnt/nfs/vhdx,overcommit=2,reserve=10Gi`

// command builds the command line. start gets the checked options.
func command(start func(cmd *cobra.Command, o *options) error) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:                   "vhdx-csi [flags]",
		Short:                 "CSI plugin for volumes that are VHDX files",
		Long:                  long,
		Example:               examples,
		Version:               version,
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return usage(cmd, err)
			}
			return start(cmd, o)
		},
	}
	cmd.SetFlagErrorFunc(usage)
	cmd.CompletionOptions.DisableDefaultCmd = true
	o.register(cmd.Flags())
	return cmd
}

func usage(cmd *cobra.Command, err error) error {
	cmd.PrintErrf("vhdx-csi: %v\nRun vhdx-csi --help for all flags.\n", err)
	return fmt.Errorf("%w: %w", errUsage, err)
}

func (o *options) register(fs *pflag.FlagSet) {
	fs.SortFlags = true
	fs.StringVar(&o.mode, "mode", modeAll, "services to run: controller, node or all")
	fs.StringVar(&o.endpoint, "endpoint", defaultEndpoint, "Unix socket to serve CSI on")
	fs.StringVar(&o.nodeID, "node-id", "", "name of this node; by default its host name")
	fs.StringArrayVar(&o.pools, "pool", nil, "a pool, as name=directory[,option...]; may be given several times, the first is the default. Options: "+
		"local (only this node, the one of --node-id, reaches the directory), overcommit=N (promise N times the filesystem's size; default 1), "+
		"reserve=SIZE (never promise these bytes), allow-unsafe (open a share whose mount options can lose data). "+
		"With --mode=all the default is default=STATE-DIR/pool,local")
	fs.StringVar(&o.stateDir, "state-dir", defaultStateDir, "directory for what this node has staged; must survive a restart of the plugin")
	fs.StringVar(&o.backend, "backend", backendAuto, "how images become block devices: auto or fuseloop")
	fs.BoolVar(&o.allowDeviceLoss, "allow-device-loss", false, "attach volumes although this node's kernel cannot carry their devices over the death of the plugin (before Linux 6.9.4): "+
		"such a death then costs them, with what was not flushed, and the pods that use them must be restarted")
	fs.StringVar(&o.keeperSocket, "keeper-socket", "", keeperUsage+". By default the plugin starts one itself, at STATE-DIR/"+keeperSocketName)
	fs.Int64Var(&o.maxVolumes, "max-volumes", 0, "how many volumes this node takes, for the scheduler and the controller; 0 is no limit")
	fs.StringVar(&o.memoryLimit, "memory-limit", memoryAuto, "soft limit of the Go heap, such as 512Mi; auto is 90 % of the container's limit, or an eighth of the machine's memory; none sets none. The variable GOMEMLIMIT wins over auto")
	fs.StringVar(&o.metricsAddress, "metrics-address", "", "address to serve Prometheus metrics on, at /metrics, such as :9809; by default nowhere")
	fs.StringVar(&o.otlpEndpoint, "otlp-endpoint", "", "OpenTelemetry collector that gets a span of each call, by OTLP over gRPC, such as http://collector:4317 (https: with TLS). By default none, unless the variable OTEL_EXPORTER_OTLP_ENDPOINT names one")
	fs.StringVar(&o.controlAddress, "control-address", ":0", "address on which the node service answers controllers of other processes, with mutual TLS; "+
		"port 0 is any free one, for the pool tells where. Nobody listens where all pools are local")
	fs.StringVar(&o.controlAdvertise, "control-advertise", "", "address, or several with commas, at which controllers reach that, such as the pod's; by default those of this host")
	fs.StringVar(&o.events, "events", eventsAuto, "write Kubernetes Events of what an operator must know: auto (in a pod), on or off")
	fs.DurationVar(&o.hangTimeout, "hang-timeout", 10*time.Second, "how long the worker may show no sign of life before it is killed and replaced, which costs its volumes a pause")
	fs.DurationVar(&o.workTimeout, "work-timeout", 30*time.Minute, "when an operation that outlives its caller is told to give up")
	fs.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 25*time.Second, "how long calls under way and the last flush may take after SIGTERM")

	logging := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(logging)
	for _, name := range []string{"v", "vmodule"} {
		fs.AddGoFlag(logging.Lookup(name))
	}
}

// check refuses combinations that cannot work and fills in what depends on
// other flags.
func (o *options) check() error {
	switch o.mode {
	case modeAll, modeController, modeNode:
	default:
		return fmt.Errorf("--mode=%s: there is controller, node and all", o.mode)
	}
	if len(o.pools) == 0 && o.mode != modeAll {
		return fmt.Errorf("--mode=%s needs at least one --pool=name=directory", o.mode)
	}
	if !filepath.IsAbs(o.stateDir) {
		return fmt.Errorf("--state-dir=%s: give an absolute path", o.stateDir)
	}
	if o.keeperGiven = o.keeperSocket != ""; !o.keeperGiven {
		o.keeperSocket = filepath.Join(o.stateDir, keeperSocketName)
	}
	if !filepath.IsAbs(o.keeperSocket) {
		return fmt.Errorf("--keeper-socket=%s: give an absolute path", o.keeperSocket)
	}
	if err := errors.Join(o.checkObservers(), o.checkControl()); err != nil {
		return err
	}
	if o.maxVolumes < 0 {
		return fmt.Errorf("--max-volumes=%d: give 0 or more", o.maxVolumes)
	}
	if o.workTimeout <= 0 || o.shutdownTimeout <= 0 {
		return errors.New("--work-timeout and --shutdown-timeout must be more than 0")
	}
	if o.hangTimeout < minHangTimeout {
		return fmt.Errorf("--hang-timeout=%v: give at least %v, or a busy machine looks like a hang", o.hangTimeout, minHangTimeout)
	}
	if o.nodeID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--node-id is not given and the host name is not known: %w", err)
		}
		o.nodeID = cmp.Or(host, "localhost")
	}
	return nil
}

// checkObservers checks where the plugin tells what it does.
func (o *options) checkObservers() error {
	switch o.events {
	case eventsAuto, eventsOn, eventsOff:
	default:
		return fmt.Errorf("--events=%s: there is auto, on and off", o.events)
	}
	if o.metricsAddress != "" {
		if _, port, err := net.SplitHostPort(o.metricsAddress); err != nil || port == "" {
			return fmt.Errorf("--metrics-address=%s: give host:port, or :port for all addresses of this host", o.metricsAddress)
		}
	}
	if o.otlpEndpoint != "" {
		return checkOTLP(o.otlpEndpoint)
	}
	return nil
}
