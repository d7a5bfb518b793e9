package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// config has the targets in a file, for they come and go during a run.
const config = `
global: {scrape_interval: %s}
scrape_configs:
  - job_name: vhdx-csi
    file_sd_configs: [{files: [%s], refresh_interval: 1s}]
`

const targetsFile = "targets.json"

type prometheus struct {
	cmd     *exec.Cmd
	address string
	ended   chan error
	log     string
}

// startPrometheus starts one that scrapes the driver's pods, and waits until it
// has seen them.
func startPrometheus(ctx context.Context, dir string) (*prometheus, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &prometheus{address: l.Addr().String(), ended: make(chan error, 1), log: filepath.Join(dir, "log")}
	l.Close()
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), fmt.Appendf(nil, config, scrapeEvery, targetsFile), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", "--web.listen-address="+p.address)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start prometheus: %w", err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	go follow(ctx, filepath.Join(dir, targetsFile))
	if err := p.await(ctx); err != nil {
		said, _ := os.ReadFile(p.log)
		p.stop()
		return nil, fmt.Errorf("prometheus has no data of the driver: %w; it says:\n%s", err, said)
	}
	return p, nil
}

// await waits for the first data.
func (p *prometheus) await(ctx context.Context) error {
	for {
		now := time.Now()
		if found, err := p.series(ctx, "vhdx_csi_build_info", now.Add(-step), now); err == nil && len(found) > 1 {
			return nil
		}
		select {
		case err := <-p.ended:
			p.ended <- err
			return fmt.Errorf("it has ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (p *prometheus) stop() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// follow keeps the file of targets as the cluster has them.
func follow(ctx context.Context, file string) {
	for ctx.Err() == nil {
		if err := putTargets(ctx, file); err != nil {
			fmt.Fprintf(os.Stderr, "picture: look for the driver's pods: %v\n", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(scrapeEvery):
		}
	}
}

// target is a group of Prometheus' targets: one pod, under a name that stays
// when it is replaced.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

func putTargets(ctx context.Context, file string) error {
	out, err := exec.CommandContext(ctx, "kubectl", "get", "pods", "-n", "vhdx-csi", "-o", "json").Output()
	if err != nil {
		return err
	}
	var pods struct {
		Items []struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				NodeName   string
				Containers []struct {
					Ports []struct {
						Name          string
						ContainerPort int
					}
				}
			}
			Status struct{ PodIP string }
		}
	}
	if err := json.Unmarshal(out, &pods); err != nil {
		return err
	}
	found := []target{}
	for _, pod := range pods.Items {
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name == "metrics" && pod.Status.PodIP != "" {
					found = append(found, target{
						[]string{net.JoinHostPort(pod.Status.PodIP, fmt.Sprint(port.ContainerPort))},
						map[string]string{"instance": pod.Metadata.Labels["app"] + " on " + pod.Spec.NodeName},
					})
				}
			}
		}
	}
	b, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
