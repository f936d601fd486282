package planner

import "strings"

// class is what a directive acts on, and so what it takes to put a new value
// into effect for a unit that is loaded.
type class uint8

const (
	// classInert: systemd does not read it (X- keys and sections).
	classInert class = iota
	// classManager: PID 1 reads it when the moment comes (a stop, a failure, a
	// job); a daemon-reload is all.
	classManager
	// classCgroup: an attribute of the unit's control group or a BPF program on
	// it; a daemon-reload writes it to the running group.
	classCgroup
	// classExec: part of the execution context or of the start itself; only a
	// new start applies it.
	classExec
	// classListen: an attribute of a listening socket, set when it is made.
	classListen
	// classRemount: a mount option; the unit's reload remounts.
	classRemount
	// classMount: what is mounted where; only a new mount applies it.
	classMount
	// classSwap: how a swap device was switched on.
	classSwap
)

func words(s string) map[string]bool {
	m := make(map[string]bool)
	for w := range strings.FieldsSeq(s) {
		m[w] = true
	}
	return m
}

// The lists follow systemd's manual pages of version 252 with the additions
// of later ones; the names were checked against the directives that
// `systemd --dump-configuration-items` prints.
var (
	// systemd.unit(5), [Unit]. JoinsNamespaceOf= alone is part of the execution
	// context: it is read when a process is forked.
	unitManager = words(`
		Description Documentation SourcePath
		After Before Wants Requires RequiresOverridable Requisite RequisiteOverridable BindsTo BindTo PartOf
		Upholds Conflicts OnFailure OnSuccess OnFailureJobMode OnSuccessJobMode OnFailureIsolate
		PropagatesReloadTo ReloadPropagatedFrom PropagateReloadTo PropagateReloadFrom
		PropagatesStopTo StopPropagatedFrom RequiresMountsFor WantsMountsFor
		IgnoreOnIsolate StopWhenUnneeded RefuseManualStart RefuseManualStop AllowIsolate DefaultDependencies
		SurviveFinalKillSignal CollectMode FailureAction SuccessAction FailureActionExitStatus
		SuccessActionExitStatus JobTimeoutSec JobRunningTimeoutSec JobTimeoutAction JobTimeoutRebootArgument
		StartLimitInterval StartLimitIntervalSec StartLimitBurst StartLimitAction RebootArgument`)

	// systemd.resource-control(5), without Slice= and Delegate=, which are
	// settled when the group is made, and MemoryPressureWatch=, which is handed
	// to the service in its environment.
	cgroupLive = words(`
		CPUAccounting CPUWeight StartupCPUWeight CPUShares StartupCPUShares CPUQuota CPUQuotaPeriodSec
		AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes
		MemoryAccounting MemoryMin MemoryLow DefaultMemoryMin DefaultMemoryLow DefaultStartupMemoryLow
		StartupMemoryLow StartupMemoryHigh StartupMemoryMax StartupMemorySwapMax StartupMemoryZSwapMax
		MemoryHigh MemoryMax MemorySwapMax MemoryZSwapMax MemoryZSwapWriteback MemoryLimit
		TasksAccounting TasksMax IOAccounting IOWeight StartupIOWeight IODeviceWeight IOReadBandwidthMax
		IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax IODeviceLatencyTargetSec
		BlockIOAccounting BlockIOWeight StartupBlockIOWeight BlockIODeviceWeight BlockIOReadBandwidth
		BlockIOWriteBandwidth IPAccounting IPAddressAllow IPAddressDeny IPIngressFilterPath IPEgressFilterPath
		BPFProgram SocketBindAllow SocketBindDeny RestrictNetworkInterfaces NFTSet DeviceAllow DevicePolicy
		DisableControllers ManagedOOMSwap ManagedOOMMemoryPressure ManagedOOMMemoryPressureLimit
		ManagedOOMMemoryPressureDurationSec ManagedOOMPreference OOMPolicy`)

	// systemd.kill(5): all of it is read when the unit is stopped.
	killManager = words(`
		KillMode KillSignal RestartKillSignal SendSIGHUP SendSIGKILL FinalKillSignal WatchdogSignal`)

	// systemd.service(5): what PID 1 reads when the service ends, fails, is
	// reloaded or is stopped; and from systemd.exec(5) what is read at the stop.
	serviceManager = words(`
		ExecReload ExecReloadPost ExecStop ExecStopPost ExecCondition
		Restart RestartSec RestartSteps RestartMaxDelaySec RestartMode RestartPreventExitStatus
		RestartForceExitStatus SuccessExitStatus RemainAfterExit ExitType ReloadSignal
		TimeoutSec TimeoutStartSec TimeoutStopSec TimeoutAbortSec TimeoutCleanSec
		TimeoutStartFailureMode TimeoutStopFailureMode RuntimeMaxSec RuntimeRandomizedExtraSec
		FileDescriptorStoreMax FileDescriptorStorePreserve
		StartLimitInterval StartLimitBurst StartLimitAction FailureAction RebootArgument
		RuntimeDirectoryPreserve RemoveIPC`)

	// systemd.socket(5): what PID 1 reads when a connection comes or the
	// socket is stopped.
	socketManager = words(`
		MaxConnections MaxConnectionsPerSource TriggerLimitIntervalSec TriggerLimitBurst
		PollLimitIntervalSec PollLimitBurst FlushPending RemoveOnStop TimeoutSec
		ExecStartPre ExecStartPost ExecStopPre ExecStopPost DeferTrigger DeferTriggerMaxSec`)

	// systemd.socket(5): what is set on the socket when it is made.
	socketListen = words(`
		ListenStream ListenDatagram ListenSequentialPacket ListenFIFO ListenSpecial ListenNetlink
		ListenMessageQueue ListenUSBFunction SocketProtocol BindIPv6Only Backlog BindToDevice SocketUser
		SocketGroup SocketMode DirectoryMode Accept Writable KeepAlive KeepAliveTimeSec KeepAliveIntervalSec
		KeepAliveProbes NoDelay Priority DeferAcceptSec ReceiveBuffer SendBuffer IPTOS IPTTL Mark ReusePort
		SmackLabel SmackLabelIPIn SmackLabelIPOut SELinuxContextFromNet PipeSize MessageQueueMaxMessages
		MessageQueueMessageSize FreeBind Transparent Broadcast PassCredentials PassPIDFD PassSecurity
		PassPacketInfo PassFileDescriptorsToExec AcceptFileDescriptors Timestamping TCPCongestion Symlinks
		FileDescriptorName Service XAttrEntryPoint XAttrListen XAttrAccept
		PrivateNetwork NetworkNamespacePath`)

	// systemd.exec(5). For a service these are restart; the helper commands of
	// a socket, mount or swap unit get them at their next run.
	execContext = words(`
		WorkingDirectory RootDirectory RootImage RootImageOptions RootImagePolicy RootEphemeral RootHash
		RootHashSignature RootVerity RootMStack MountAPIVFS BindLogSockets ProtectProc ProcSubset BindPaths BindReadOnlyPaths
		MountImages MountImagePolicy ExtensionImages ExtensionImagePolicy ExtensionDirectories ExecSearchPath User Group DynamicUser
		SupplementaryGroups SetLoginEnvironment PAMName UserNamespacePath CapabilityBoundingSet AmbientCapabilities NoNewPrivileges
		SecureBits SELinuxContext AppArmorProfile SmackProcessLabel UMask CoredumpFilter KeyringMode
		OOMScoreAdjust TimerSlackNSec Personality IgnoreSIGPIPE Nice CPUSchedulingPolicy
		CPUSchedulingPriority CPUSchedulingResetOnFork CPUAffinity NUMAPolicy NUMAMask
		IOSchedulingClass IOSchedulingPriority ProtectSystem ProtectHome RuntimeDirectory StateDirectory
		CacheDirectory LogsDirectory ConfigurationDirectory RuntimeDirectoryMode StateDirectoryMode
		CacheDirectoryMode LogsDirectoryMode ConfigurationDirectoryMode RuntimeDirectoryPreserve
		StateDirectoryQuota StateDirectoryAccounting CacheDirectoryQuota CacheDirectoryAccounting LogsDirectoryQuota LogsDirectoryAccounting
		TimeoutCleanSec ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths NoExecPaths
		ReadWriteDirectories ReadOnlyDirectories InaccessibleDirectories TemporaryFileSystem PrivateTmp
		PrivateDevices PrivateNetwork NetworkNamespacePath PrivateIPC IPCNamespacePath PrivatePIDs MemoryKSM MemoryTHP
		PrivateUsers ProtectHostname ProtectClock ProtectKernelTunables ProtectKernelModules
		ProtectKernelLogs ProtectControlGroups RestrictAddressFamilies RestrictFileSystems
		RestrictNamespaces LockPersonality MemoryDenyWriteExecute RestrictRealtime RestrictSUIDSGID
		RemoveIPC PrivateMounts MountFlags PrivateBPF BPFDelegateCommands BPFDelegateMaps BPFDelegatePrograms BPFDelegateAttachments
		DelegateNamespaces SystemCallFilter SystemCallErrorNumber
		SystemCallArchitectures SystemCallLog Environment EnvironmentFile PassEnvironment UnsetEnvironment
		StandardInput StandardOutput StandardError StandardInputText StandardInputData LogLevelMax
		LogExtraFields LogRateLimitIntervalSec LogRateLimitBurst LogFilterPatterns LogNamespace
		SyslogIdentifier SyslogFacility SyslogLevel SyslogLevelPrefix TTYPath TTYReset TTYVHangup
		TTYColumns TTYRows TTYVTDisallocate LoadCredential LoadCredentialEncrypted ImportCredential
		SetCredential SetCredentialEncrypted UtmpIdentifier UtmpMode
		LimitCPU LimitFSIZE LimitDATA LimitSTACK LimitCORE LimitRSS LimitNOFILE LimitAS LimitNPROC
		LimitMEMLOCK LimitLOCKS LimitSIGPENDING LimitMSGQUEUE LimitNICE LimitRTPRIO LimitRTTIME
		MemoryPressureWatch MemoryPressureThresholdSec CoredumpReceive Slice Delegate DelegateSubgroup`)

	// systemd.mount(5), systemd.swap(5), systemd.automount(5): read when the
	// unit is started or stopped, and of no consequence for one that is mounted.
	mountManager = words(`
		SloppyOptions LazyUnmount ReadWriteOnly ForceUnmount DirectoryMode TimeoutSec TimeoutIdleSec`)
)

// classify tells the class of one directive in a unit of the given type (the
// suffix of its name, without the dot). What no manual page names is taken to
// need a new start: the safe side.
func classify(unitType, section, key string) class {
	if strings.HasPrefix(key, "X-") || strings.HasPrefix(section, "X-") {
		return classInert
	}
	switch section {
	case "Install":
		return classManager
	case "Unit":
		if unitManager[key] || strings.HasPrefix(key, "Condition") || strings.HasPrefix(key, "Assert") {
			return classManager
		}
		return classExec
	}
	switch unitType {
	case "timer", "path", "target", "device", "slice", "scope":
		// Timers and paths are armed anew after a daemon-reload; the rest hold
		// no process of their own that could have the old value.
		return classManager
	}
	if cgroupLive[key] {
		return classCgroup
	}
	if killManager[key] {
		return classManager
	}
	switch unitType {
	case "service":
		if serviceManager[key] {
			return classManager
		}
		return classExec
	case "socket":
		if socketListen[key] {
			return classListen
		}
		if socketManager[key] || execContext[key] {
			return classManager
		}
		return classListen
	case "mount":
		if key == "Options" {
			return classRemount
		}
		if mountManager[key] || execContext[key] {
			return classManager
		}
		return classMount
	case "swap":
		if mountManager[key] || execContext[key] {
			return classManager
		}
		return classSwap
	case "automount":
		if mountManager[key] {
			return classManager
		}
		return classMount
	}
	return classExec
}
