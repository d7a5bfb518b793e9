package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a shell's completion script",
		Long: `Print the script that makes a shell complete vhdxctl's commands, options and
image names.`,
		Example: `  source <(vhdxctl completion bash)
  vhdxctl completion bash > /etc/bash_completion.d/vhdxctl
  vhdxctl completion zsh > "${fpath[1]}/_vhdxctl"
  vhdxctl completion fish > ~/.config/fish/completions/vhdxctl.fish`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return fmt.Errorf("shell %s: want bash, zsh, fish or powershell", args[0])
		},
	}
}

// manResult is what man prints as JSON.
type manResult struct {
	Directory string `json:"directory"`
	Pages     int    `json:"pages"`
}

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the manual pages",
		Long: `Write a manual page of every command into a directory: vhdxctl.1,
vhdxctl-create.1 and so on.`,
		Example: `  vhdxctl man /usr/local/share/man/man1
  vhdxctl man . && man ./vhdxctl-convert.1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // manual pages are for everybody
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			// A date would make two runs differ.
			header := &doc.GenManHeader{Section: "1", Source: "csi-driver-vhdx", Manual: "vhdxctl", Date: &time.Time{}}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return err
			}
			pages, err := os.ReadDir(args[0])
			if err != nil {
				return err
			}
			a.print(manResult{args[0], len(pages)}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: manual pages written\n", args[0])
			})
			return nil
		},
	}
}

// completeImages has shells complete arguments with files that look like disks.
func completeImages(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"vhdx", "avhdx", "raw", "img"}, cobra.ShellCompDirectiveFilterFileExt
}
