"""The offline tier: Spark sessions, jobs, and jobs as steps. Import from its modules, never `spark` itself."""
